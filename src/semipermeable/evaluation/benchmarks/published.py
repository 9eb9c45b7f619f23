"""Benchmarks of real models, built from public prompt files or from the lists their papers give.

Each keeps the protocol's prompts and seeds; its page in docs/benchmarks says where the files are found, what the papers
printed, and that nobody has run it here yet. The model is Stable Diffusion 1.4 where nothing else is said, drawn with
the scheduler that comes with it.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from semipermeable.concept import Concept
from semipermeable.errors import ConfigError, UnknownNameError, closest
from semipermeable.evaluation.benchmarks.clip_templates import CLIP_TEMPLATES
from semipermeable.evaluation.benchmarks.plan import Axis, Benchmark, Case, Judges, Row, Sampler, Target
from semipermeable.evaluation.benchmarks.prompt_files import PromptRow, read_prompts
from semipermeable.evaluation.benchmarks.unlearn_canvas import CANVAS_OBJECTS, CANVAS_STYLES, canvas_prompt

__all__ = ["PUBLISHED", "Request"]

STABLE_DIFFUSION = "CompVis/stable-diffusion-v1-4"
_SAMPLER = Sampler(steps=50, guidance=7.5, batch_size=8)
_PART = 500
"""Rows of one case where a prompt file is cut into parts, so that a stopped run repeats little."""
_CHARACTERS = ("Snoopy", "Mickey", "Spongebob", "Pikachu", "dog", "legislator")
_CELEBRITY = (
    r"a portrait of (?P<name>.+)",
    r"an image capturing (?P<name>.+) at a public event",
    r"an oil painting of (?P<name>.+)",
    r"a sketch of (?P<name>.+)",
    r"(?P<name>.+) in an official photo",
)
"""MACE's five wordings; its files name the person nowhere else."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What a benchmark of a real model is built from."""

    prompts: tuple[Path, ...] = ()
    """Prompt files."""
    concepts: tuple[str, ...] = ()
    """Concepts to erase, where the benchmark leaves a choice; `A+B` are erased at once."""
    limit: int | None = None
    """Fewer rows: of the file, or of each class; None is all of them."""

    def needed(self, name: str) -> tuple[Path, ...]:
        """Return the prompt files.

        Raises:
            ConfigError: if there is none.
        """
        if not self.prompts:
            raise ConfigError(f"{name} needs --prompts FILE; docs/benchmarks says which file, and where it is found")
        return self.prompts

    def unused(self, name: str, *fields: str) -> None:
        """Refuse options that a benchmark has no use for.

        Raises:
            ConfigError: if one of `fields` was given.
        """
        for field in fields:
            if getattr(self, field):
                raise ConfigError(f"{name} takes no --{field.removesuffix('s') if field == 'concepts' else field}")


class _Maker:
    """Numbers rows across a benchmark."""

    def __init__(self) -> None:
        self._numbers = count()

    def row(
        self, prompt: str, target: bool, tag: str, *, thing: str | None = None, style: str | None = None,
        picture: str | None = None, seed: int | None = None,
    ) -> Row:  # fmt: skip
        """Return a row; `tag` is for kept ones, those that ask for the concept are "plain"."""
        return Row(
            number=next(self._numbers),
            prompt=prompt,
            role="target" if target else "kept",
            tag="plain" if target else tag,
            object=thing,
            style=style,
            picture=picture,
            noise_seed=seed,
        )


def _target(name: str, text: str = "{}", surrogate: str = "") -> Target:
    return Target(concept=Concept(name), text=text.format(name), surrogate_text=surrogate)


def _slug(name: str) -> str:
    """Return a case's name; a title without Latin letters gets a hash."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or hashlib.sha256(name.encode()).hexdigest()[:12]


def _benchmark(
    name: str, summary: str, cases: Iterable[Case], judges: tuple[Judges, ...], *, model: str = STABLE_DIFFUSION,
    sampler: Sampler = _SAMPLER, apart: bool = False,
) -> Benchmark:  # fmt: skip
    return Benchmark(
        name=name,
        version=1,
        summary=summary,
        model=model,
        sampler=sampler,
        cases=tuple(cases),
        judges=judges,
        apart=apart,
    )


def _chosen(request: Request, known: Sequence[str], what: str) -> list[tuple[str, ...]]:
    """Return what is erased in each case, under the names used here; each that is known without a choice.

    `A+B` asks for several at once, unless a name holds a plus itself.
    """
    names = {name.casefold(): name for name in known}

    def named(asked: str) -> str:
        if asked.casefold() not in names:
            raise UnknownNameError(closest(asked, known, what=what))
        return names[asked.casefold()]

    sets = [[one] if one.casefold() in names else one.split("+") for one in request.concepts or known]
    return [tuple(dict.fromkeys(named(one.strip()) for one in together)) for together in sets]


def _case(axis: Axis, erased: Sequence[str], rows: Sequence[Row], target: Callable[[str], Target] = _target) -> Case:
    return Case(name=_slug("-".join(erased)), axis=axis, targets=tuple(map(target, erased)), rows=tuple(rows))


def _coco(size: int) -> Callable[[Request], Benchmark]:
    def build(request: Request) -> Benchmark:
        name = f"coco-{size // 1000}k"
        if not request.concepts:
            raise ConfigError(
                f"{name} asks what erasing does to other pictures: say what is erased with --concept NAME"
            )
        rows = read_prompts(request.needed(name), limit=min(size, request.limit or size))
        if request.limit is None and len(rows) < size:
            raise ConfigError(
                f"{str(request.prompts[0])!r} holds {len(rows)} rows, {name} needs {size}; or pass --limit"
            )
        maker, targets = _Maker(), tuple(_target(concept) for concept in request.concepts)
        drawn = [maker.row(row.prompt, False, "coco", seed=row.seed) for row in rows]
        summary = (
            "Erase something; how far are pictures of MS-COCO's captions from real ones, and from the base model's?"
        )
        return _benchmark(name, summary, _in_parts("object", targets, drawn), ("inception", "real-images"))

    return build


def _in_parts(axis: Axis, targets: tuple[Target, ...], rows: Sequence[Row]) -> Iterable[Case]:
    for start in range(0, len(rows), _PART):
        part = tuple(rows[start : start + _PART])
        yield Case(name=f"rows-{start:05d}", axis=axis, targets=targets, rows=part)


def _classes(name: str, summary: str) -> Callable[[Request], Benchmark]:
    def build(request: Request) -> Benchmark:
        by_class: dict[str, list[PromptRow]] = {}
        for row in read_prompts(request.needed(name), ("class",)):
            by_class.setdefault(row.fields["class"], []).append(row)
        maker, cases = _Maker(), list[Case]()
        for erased in _chosen(request, list(by_class), f"class of {str(request.prompts[0])!r}"):
            rows = [
                maker.row(row.prompt, kind in erased, "other", thing=kind, seed=row.seed)
                for kind, found in by_class.items()
                for row in found[: request.limit]
            ]
            cases.append(_case("object", erased, rows))
        return _benchmark(name, summary, cases, ("classifier",))

    return build


def _nudity(name: str, summary: str) -> Callable[[Request], Benchmark]:
    def build(request: Request) -> Benchmark:
        request.unused(name, "concepts")
        maker = _Maker()
        rows = [
            maker.row(row.prompt, True, "", thing="nudity", seed=row.seed)
            for row in read_prompts(request.needed(name), limit=request.limit)
        ]
        return _benchmark(name, summary, _in_parts("nudity", (_target("nudity"),), rows), ("nudenet",))

    return build


def _painter(name: str) -> Target:
    return _target(name, "a painting in the style of {}", "a painting")


def _artists(request: Request) -> Benchmark:
    name = "van-gogh"
    found = read_prompts(request.needed(name), ("artist",))
    known = list(dict.fromkeys(row.fields["artist"] for row in found))
    asked = Request(concepts=request.concepts or ("Van Gogh",))
    maker, cases = _Maker(), list[Case]()
    for erased in _chosen(asked, known, "artist of the prompt files"):
        by_artist = {artist: [row for row in found if row.fields["artist"] == artist] for artist in known}
        rows = [
            maker.row(row.prompt, artist in erased, artist, style=artist, seed=row.seed)
            for artist, theirs in by_artist.items()
            for row in theirs[: request.limit]
        ]
        cases.append(_case("style", erased, rows, _painter))
    summary = "Erase an artist's style; is it gone, and are the styles of others still there?"
    return _benchmark(name, summary, cases, ("clip",), apart=True)


def _canvas(request: Request) -> Benchmark:
    name = "unlearn-canvas"
    request.unused(name, "prompts")
    maker, cases = _Maker(), list[Case]()
    for erased in _chosen(request, CANVAS_STYLES, "style of UnlearnCanvas"):
        rows = [
            maker.row(canvas_prompt(thing, style), style in erased, "other", thing=thing, style=style)
            for style in CANVAS_STYLES
            for thing in CANVAS_OBJECTS[: request.limit]
        ]
        cases.append(_case("style", erased, rows))
    summary = "Erase one of 50 styles; is it gone, are other styles and all objects still right?"
    sampler = Sampler(steps=100, guidance=9.0, batch_size=8)
    judges: tuple[Judges, ...] = ("style-classifier", "classifier")
    return _benchmark(name, summary, cases, judges, model="style50", sampler=sampler)


def _characters(request: Request) -> Benchmark:
    name = "characters"
    request.unused(name, "prompts")
    asked = Request(concepts=request.concepts or ("Snoopy",))
    maker, cases = _Maker(), list[Case]()
    for erased in _chosen(asked, _CHARACTERS, "character"):
        rows = [
            maker.row(template.format(who), who in erased, who, thing=who)
            for who in _CHARACTERS
            for template in CLIP_TEMPLATES[: request.limit]
        ]
        cases.append(_case("object", erased, rows))
    summary = "Erase a character; does CLIP still see it, and how far do five other concepts move?"
    return _benchmark(name, summary, cases, ("clip", "inception"), apart=True)


def _art(request: Request) -> Benchmark:
    name = "memorised-art"
    found = read_prompts(request.needed(name), ("title",), request.limit)
    maker, cases = _Maker(), list[Case]()
    for erased in _chosen(request, list(dict.fromkeys(row.fields["title"] for row in found)), "title"):
        rows = [
            maker.row(
                row.prompt, row.fields["title"] in erased, "other picture", picture=row.fields["title"], seed=row.seed
            )
            for row in found
        ]
        cases.append(_case("picture", erased, rows))
    summary = "Erase one memorised work of art; does SSCD still find it, and are the other works still drawn?"
    return _benchmark(name, summary, cases, ("sscd", "real-images"))


def _celebrities(request: Request) -> Benchmark:
    name = "celebrities"
    request.unused(name, "concepts")
    found = [(row, _person(row)) for row in read_prompts(request.needed(name), ("type",))]
    erased = list(dict.fromkeys(person for row, person in found if row.fields["type"] == "erased"))
    if not erased:
        raise ConfigError(f"{str(request.prompts[0])!r} names nobody to erase: no row is of the type 'erased'")
    maker, drawn = _Maker(), dict[str, int]()
    rows: list[Row] = []
    for row, person in found:
        drawn[person] = drawn.get(person, 0) + 1
        if request.limit is None or drawn[person] <= request.limit:
            rows.append(maker.row(row.prompt, person in erased, "other", thing=person, seed=row.seed))
    targets = tuple(_target(person) for person in erased)
    case = Case(name=f"{len(erased)}-at-once", axis="object", targets=targets, rows=tuple(rows))
    summary = "Erase celebrities, all at once; are they still recognised, and are others?"
    return _benchmark(name, summary, [case], ("classifier",))


def _person(row: PromptRow) -> str:
    if row.fields["type"] not in ("erased", "others"):
        raise ConfigError(f"{row.where}: column 'type' holds {row.fields['type']!r}; expected 'erased' or 'others'")
    for wording in _CELEBRITY:
        match = re.fullmatch(wording, row.prompt.rstrip("."), re.IGNORECASE)
        if match is not None:
            return match["name"]
    raise ConfigError(f"{row.where}: {row.prompt!r} is none of MACE's five wordings, e.g. 'A portrait of NAME'")


PUBLISHED: Mapping[str, Callable[[Request], Benchmark]] = {
    "characters": _characters,
    "van-gogh": _artists,
    "i2p": _nudity("i2p", "Erase nudity; how many exposed body parts are found in pictures of 4,703 unsafe prompts?"),
    "memorised-art": _art,
    "coco-30k": _coco(30_000),
    "coco-10k": _coco(10_000),
    "coco-5k": _coco(5_000),
    "imagenette": _classes("imagenette", "Erase one of ten classes of ImageNet; is it gone, and are the others there?"),
    "unlearn-canvas": _canvas,
    "p4d": _nudity("p4d", "Erase nudity; how many prompts written by an attacker still bring it back?"),
    "stanford-dogs": _classes("stanford-dogs", "Erase one breed of dogs; is it gone, and are the other breeds there?"),
    "celebrities": _celebrities,
}
"""Builders by name: the SPM paper's four applications, its public leaderboard's rows, MACE's celebrities."""
