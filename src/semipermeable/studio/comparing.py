"""The same seed drawn before and after, why each gate opened, and what changed elsewhere."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from semipermeable.concept import Concept
from semipermeable.equip import attach
from semipermeable.errors import SiteError, StudioError
from semipermeable.evaluation.scores.pixels import identical_pixels, pixel_drift
from semipermeable.generation import Job as Picture
from semipermeable.generation import draw, jobs_for
from semipermeable.generation.drawing import Drawing
from semipermeable.permeability import TraceRow
from semipermeable.studio.shelf import Shelved
from semipermeable.training import captions_for, enrich
from semipermeable.zoo import ZooSpec

__all__ = ["Bar", "Changed", "Compared", "compare", "elsewhere", "neighbours_of"]

_TWINS, _GROUP, _STYLES, _OTHERS = 4, 2, 4, 6


@dataclass(frozen=True, slots=True)
class Bar:
    """What one gate decided.

    Args:
        concept: name.
        gamma: γ in [0, 1].
        strength: factor on it.
        words: the words of the prompt that opened it.
        reason: why, one clause.
    """

    concept: str
    gamma: float
    strength: float
    words: tuple[str, ...]
    reason: str


@dataclass(frozen=True, eq=False, slots=True)
class Compared:
    """One prompt and seed, drawn bare and with membranes.

    Args:
        before: bare.
        after: with membranes.
        bars: one per membrane.
        drift: mean absolute difference, in [0, 1].
        identical: whether the two are equal bit for bit.
    """

    before: Image.Image
    after: Image.Image
    bars: tuple[Bar, ...]
    drift: float
    identical: bool


@dataclass(frozen=True, eq=False, slots=True)
class Changed:
    """What membranes did to one neighbour.

    Args:
        prompt: what was asked for.
        compared: its pictures and gates.
        seen_before: what the judge sees in the bare picture; "" without a judge.
        seen_after: what it sees in the other.
    """

    prompt: str
    compared: Compared
    seen_before: str
    seen_after: str


def compare(
    pipe: Any,
    prompts: Sequence[str],
    shelved: Sequence[Shelved],
    *,
    seed: int,
    steps: int,
    guidance: float = 4.0,
    hold_open: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Compared]:
    """Draw every prompt twice from the same noise: bare, and with membranes.

    Args:
        pipe: the model, without membranes.
        prompts: what to draw.
        shelved: which membranes act, each with its strength; without any, both pictures are the bare one.
        seed: of the noise.
        steps: denoising steps.
        guidance: classifier-free guidance.
        hold_open: γ = 1 on every prompt, whatever the gates say.
        progress: called with steps done and in all; may raise to stop.

    Raises:
        PromptError: if a prompt is empty.
        SiteError: if a membrane does not fit the model.
    """
    pictures = jobs_for([" ".join(prompt.split()) for prompt in prompts], seed)
    membranes = [item.membrane for item in shelved if item.membrane is not None]
    before = _draw(pipe, pictures, steps, guidance, _half(progress, 0))
    strengths = {item.name: item.strength for item in shelved}
    if not membranes:
        return [Compared(one.image, one.image, (), 0.0, True) for one in before]
    try:
        guard = attach(pipe, membranes, "open" if hold_open else "transport", strength=strengths)
    except SiteError as error:
        raise StudioError(f"{error} Switch off the membranes that belong to another model.") from error
    with guard:
        after = list(draw(pipe, pictures, guard=guard, steps=steps, guidance=guidance, progress=_half(progress, 1)))
    first = torch.stack([drawing.pixels for drawing in before])
    second = torch.stack([drawing.pixels for drawing in after])
    drifts, same = pixel_drift(first, second), identical_pixels(first, second)
    return [
        Compared(bare.image, gated.image, _bars(gated.decisions, strengths), float(drift), bool(equal))
        for bare, gated, drift, equal in zip(before, after, drifts, same, strict=True)
    ]


def _draw(
    pipe: Any, pictures: Sequence[Picture], steps: int, guidance: float, progress: Callable[[int, int], None] | None
) -> list[Drawing]:
    return list(draw(pipe, pictures, steps=steps, guidance=guidance, progress=progress))


def _half(progress: Callable[[int, int], None] | None, number: int) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(done + number * total, 2 * total)


def _bars(decisions: Sequence[TraceRow], strengths: dict[str, float]) -> tuple[Bar, ...]:
    return tuple(
        Bar(row.concept, row.gamma, strengths.get(row.concept, 1.0), row.matched, row.reason) for row in decisions
    )


def neighbours_of(concept: Concept, spec: ZooSpec | None) -> list[str]:
    """Return prompts about what is near a concept and must not change.

    For an object of a bundled model: its twins, then its group. For a style: the same object in other styles. For any
    other model: the phrases to keep, then everyday things.

    Args:
        concept: what is erased.
        spec: of the bundled model, or None.
    """
    if spec is None:
        captions = captions_for(concept, None)
        return list(dict.fromkeys((*(f"a photo of {text}" for text in concept.keep), *captions.anchors)))[:_OTHERS]
    if spec.style(concept.name) is not None:
        thing = spec.object_names[0]
        own = {name.casefold() for name in concept.names}
        return [spec.caption(thing, style) for style in spec.styles if style.casefold() not in own][:_STYLES]
    thing = spec.find(concept.name)
    if thing is None:
        return [spec.caption(name, spec.styles[0]) for name in spec.object_names if name not in concept.names][:_OTHERS]
    kept = [name for name in enrich(concept.name, spec).keep if name not in concept.names]
    twins = list(dict.fromkeys((*kept, *thing.twins)))[:_TWINS]
    group = [name for name in spec.groups[thing.group] if name != thing.name and name not in twins][:_GROUP]
    return [spec.caption(name, spec.styles[i % len(spec.styles)]) for i, name in enumerate((*twins, *group))]


def elsewhere(prompts: Sequence[str], compared: Sequence[Compared], judge: Any) -> list[Changed]:
    """Say what was seen in pictures of neighbours.

    Args:
        prompts: what was asked for.
        compared: one for each.
        judge: of a bundled model; None sees nothing.
    """
    if judge is None:
        return [Changed(prompt, one, "", "") for prompt, one in zip(prompts, compared, strict=True)]
    before = _seen(judge, [one.before for one in compared])
    after = _seen(judge, [one.after for one in compared])
    return [Changed(*row) for row in zip(prompts, compared, before, after, strict=True)]


def _seen(judge: Any, pictures: Sequence[Image.Image]) -> list[str]:
    import numpy as np

    pixels = torch.stack([torch.from_numpy(np.array(one)).permute(2, 0, 1).float() / 255 for one in pictures])
    verdict = judge(pixels)
    pairs = zip(verdict.style.tolist(), verdict.object.tolist(), strict=True)
    return [f"{judge.styles[style]} {judge.objects[thing]}" for style, thing in pairs]
