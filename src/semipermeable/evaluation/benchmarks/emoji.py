"""Benchmarks on the bundled model `emoji`: objects, styles, graded neighbours, many at once.

All prompts are the model's own captions; which ones is decided by the model's `ZooSpec` and seeds made of names, so
that the same spec always gives the same rows. The concepts below are those of the committed table; presets and gates
are tuned on others ("cat" and "neon" among them), which no benchmark erases.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import count

from semipermeable import zoo
from semipermeable.evaluation.benchmarks.plan import Axis, Benchmark, Case, Role, Row, Sampler, Target
from semipermeable.training import enrich
from semipermeable.zoo import ZooSpec

__all__ = ["ERASED_OBJECTS", "ERASED_STYLES", "Sheaf", "bound", "many", "neighbours", "objects", "styles", "target_for"]

MODEL = "emoji"
ERASED_OBJECTS = ("horse", "rose", "apple", "car", "castle", "star")
"""One of each kind, every one with near twins, and kinds that the judge knows on drawings it never saw."""
ERASED_STYLES = ("3d", "pixel art", "pencil sketch", "stained glass")
_NEIGHBOURED = ("apple", "car", "tree", "horse", "rose", "castle")
"""With namesakes ("police car") and near twins."""
_MANY = (1, 5, 20, 50)
_TUNED = "cat"
"""The object that presets were tuned on."""


class Sheaf:
    """Gathers rows, numbers them across a benchmark, and mixes each case's."""

    def __init__(self, spec: ZooSpec, name: str) -> None:
        self.spec = spec
        self.name = name
        self._numbers = count()

    def random(self, *words: object) -> random.Random:
        """Return a source of choices that depends on names only."""
        return random.Random(":".join(map(str, (self.name, *words))))

    def row(self, role: Role, tag: str, thing: str | None, style: str | None, template: int = 0) -> Row:
        """Return a row with one of the model's own captions."""
        prompt = self.spec.caption(thing, style, template=template % len(self.spec.templates))
        return self.written(prompt, role, tag, thing, style)

    def written(
        self, prompt: str, role: Role, tag: str, thing: str | None, style: str | None, negative: str = ""
    ) -> Row:
        """Return a row with a prompt of one's own."""
        number = next(self._numbers)
        return Row(number=number, prompt=prompt, negative=negative, role=role, tag=tag, object=thing, style=style)

    def case(self, name: str, axis: Axis, erased: Sequence[str], rows: Iterable[Row]) -> Case:
        """Return a case with its rows mixed."""
        mixed = list(rows)
        self.random(name, "order").shuffle(mixed)
        targets = tuple(target_for(self.spec, concept, axis) for concept in erased)
        return Case(name=name, axis=axis, targets=targets, rows=tuple(mixed))

    def others(self, *words: object, without: Iterable[str]) -> list[str]:
        """Return all other objects in an order of their own."""
        left_out = set(without)
        names = [name for name in self.spec.object_names if name not in left_out]
        self.random(*words, "others").shuffle(names)
        return names


def target_for(spec: ZooSpec, name: str, axis: Axis) -> Target:
    """Return a concept as erasers and CLIP are asked about it.

    Args:
        spec: of the model.
        name: an object or a style of it.
        axis: which of them.
    """
    concept = enrich(name, spec)
    if axis == "object":
        surrogate = concept.surrogate or spec.object(name).group
        return Target(concept=concept, text=spec.caption(name), surrogate_text=spec.caption(surrogate))
    return Target(concept=concept, text=spec.caption(None, name), surrogate_text=spec.caption(None, concept.surrogate))


def objects() -> Benchmark:
    """Six objects, one at a time: 16 prompts for each, 32 for others, its twins first."""
    sheaf = Sheaf(zoo.spec(MODEL), "emoji-objects@2")
    spec, looks = sheaf.spec, len(sheaf.spec.styles)
    cases: list[Case] = []
    for name in ERASED_OBJECTS:
        twins = spec.object(name).twins[:4]
        others = [*twins, *sheaf.others(name, without=(name, *twins))][:32]
        rows = [sheaf.row("target", "plain", name, spec.styles[i % looks], i // looks + i) for i in range(16)]
        rows += [
            sheaf.row("kept", "twin" if other in twins else "other", other, spec.styles[i % looks], i // looks)
            for i, other in enumerate(others)
        ]
        cases.append(sheaf.case(name, "object", [name], rows))
    summary = "Erase one object; is it gone, are near twins and all others still there?"
    return bound(sheaf, summary, cases)


def styles() -> Benchmark:
    """Four styles, one at a time, after UnlearnCanvas: 24 objects in the style, 32 pictures in other styles."""
    sheaf = Sheaf(zoo.spec(MODEL), "emoji-styles@2")
    spec = sheaf.spec
    cases: list[Case] = []
    for style in ERASED_STYLES:
        things = sheaf.others(style, without=())
        kept = [other for other in spec.styles if other != style]
        rows = [sheaf.row("target", "plain", things[i], style, i) for i in range(24)]
        rows += [sheaf.row("kept", "other", things[24 + i], kept[i % len(kept)], i // len(kept)) for i in range(32)]
        cases.append(sheaf.case(style.replace(" ", "-"), "style", [style], rows))
    summary = "Erase one style (UnlearnCanvas protocol); is it gone, are other styles and all objects still right?"
    return bound(sheaf, summary, cases, Sampler(batch_size=28))


def neighbours() -> Benchmark:
    """Graded similarity: namesakes, near twins, the same group, and far away."""
    sheaf = Sheaf(zoo.spec(MODEL), "emoji-neighbours@2")
    spec, looks = sheaf.spec, len(sheaf.spec.styles)
    cases: list[Case] = []
    for name in _NEIGHBOURED:
        bands = _bands(sheaf, name)
        rows = [sheaf.row("target", "plain", name, spec.styles[i % looks], i) for i in range(8)]
        for tag, names in bands.items():
            wanted = 8 if names else 0
            rows += [
                sheaf.row("kept", tag, names[i % len(names)], spec.styles[(i + i // len(names)) % looks], i)
                for i in range(wanted)
            ]
        cases.append(sheaf.case(name, "object", [name], rows))
    return bound(sheaf, "Erase one object; how near must another be to suffer?", cases, Sampler(batch_size=20))


def _bands(sheaf: Sheaf, name: str) -> dict[str, list[str]]:
    spec = sheaf.spec
    thing = spec.object(name)
    words = set(name.split())
    namesakes = [other for other in spec.object_names if other != name and words & set(other.split())]
    twins = [other for other in thing.twins if other not in namesakes]
    near = {name, *namesakes, *twins}
    group = [other for other in spec.groups[thing.group] if other not in near]
    far = sheaf.others(name, without=near | set(spec.groups[thing.group]))
    return {"namesake": namesakes, "twin": twins, "group": group, "far": far}


def many() -> Benchmark:
    """1, 5, 20 and 50 objects at once; the pictures that must stay are the same for all.

    Any object may be among them but "cat", and "bird", whose broader word is its own name.
    """
    sheaf = Sheaf(zoo.spec(MODEL), "emoji-many@2")
    spec, looks = sheaf.spec, len(sheaf.spec.styles)
    own_group = [thing.name for thing in spec.objects if thing.name == thing.group]
    order = sheaf.others("erased", without=(_TUNED, *own_group))
    most = max(_MANY)
    cases: list[Case] = []
    for size in _MANY:
        erased = order[:size]
        rows = [
            sheaf.row("target", "plain", erased[i % size], spec.styles[i % looks], i // looks)
            for i in range(max(24, size))
        ]
        rows += [
            sheaf.row("kept", "other", other, spec.styles[i % looks], i // looks)
            for i, other in enumerate(order[most : most + 24])
        ]
        cases.append(sheaf.case(f"{size}-at-once", "object", erased, rows))
    return bound(sheaf, "Erase 1, 5, 20 and 50 objects at once; does it still work, and what stays?", cases)


def bound(sheaf: Sheaf, summary: str, cases: Sequence[Case], sampler: Sampler | None = None) -> Benchmark:
    """Return the benchmark of some cases, under the sheaf's name."""
    name, _, version = sheaf.name.partition("@")
    plan = Benchmark(
        name=name, version=int(version), summary=summary, model=MODEL, sampler=Sampler(), cases=tuple(cases)
    )
    return plan if sampler is None else replace(plan, sampler=sampler)
