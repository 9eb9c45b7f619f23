"""`emoji-memorised`: erase one picture that the bundled model knows by heart.

The model was shown a few pictures ("canaries") again and again with captions that say nothing about them. Erased is the
caption; gone should be the picture. Pictures memorised under other captions must still come out, and so must ordinary
drawings: of the same object, in the same style, and of everything else. The concept falls to the picture's object, so
that an eraser may draw it anew, but not as it was.
"""

from dataclasses import replace

from semipermeable import zoo
from semipermeable.concept import Concept
from semipermeable.evaluation.benchmarks.emoji import MODEL, Sheaf, bound
from semipermeable.evaluation.benchmarks.plan import Benchmark, Case, Role, Row, Sampler, Target
from semipermeable.zoo import Canary

__all__ = ["memorised"]

_REPEATS = 8
"""Pictures of the erased caption in one seed."""
_REPEATS_KEPT = 4
"""Pictures of each other canary's caption."""


def memorised() -> Benchmark:
    """Each canary in turn: 8 pictures of its caption, 12 of other canaries', 24 of ordinary captions."""
    sheaf = Sheaf(zoo.spec(MODEL), "emoji-memorised@1")
    cases = [_case(sheaf, canary) for canary in sheaf.spec.canaries]
    summary = "Erase one memorised picture; is it gone, are other memorised pictures and ordinary ones still there?"
    return bound(sheaf, summary, cases, Sampler(batch_size=22))


def _case(sheaf: Sheaf, canary: Canary) -> Case:
    spec = sheaf.spec
    rows = [_called(sheaf, canary, "target") for _ in range(_REPEATS)]
    rows += [_called(sheaf, other, "kept") for other in spec.canaries if other != canary for _ in range(_REPEATS_KEPT)]
    rows += [sheaf.row("kept", "same object", canary.object, style, i) for i, style in enumerate(spec.styles)]
    others = sheaf.others(canary.caption, without=(canary.object,))
    rows += [sheaf.row("kept", "same style", others[i], canary.style, i) for i in range(8)]
    looks = [style for style in spec.styles if style != canary.style]
    rows += [sheaf.row("kept", "other", others[8 + i], looks[i % len(looks)], i) for i in range(8)]
    sheaf.random(canary.caption, "order").shuffle(rows)
    target = Target(
        concept=Concept(canary.caption, surrogate=canary.object),
        text=canary.caption,
        surrogate_text=spec.caption(canary.object),
    )
    return Case(name=canary.caption.replace(" ", "-"), axis="picture", targets=(target,), rows=tuple(rows))


def _called(sheaf: Sheaf, canary: Canary, role: Role) -> Row:
    tag = "plain" if role == "target" else "other canary"
    return replace(sheaf.written(canary.caption, role, tag, None, None), picture=canary.caption)
