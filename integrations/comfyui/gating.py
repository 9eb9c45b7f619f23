"""γ of a prompt in ComfyUI, by the names of each concept.

The stored gate has two parts: names and phrases to keep, which need words and tokens only, and a probe on the states of
the very text encoder it was fitted on. ComfyUI runs an encoder of its own, whose states have not been compared with
those, so the probe is left out: what opens a membrane here is its names. Prompts beyond 77 tokens are cut into pieces
there and all of them reach the denoiser, so all words count.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from semipermeable.errors import CalibrationError
from semipermeable.membrane import GateState, Membrane
from semipermeable.permeability import Calibration, Decision, EncodedPrompt, GatedConcept, Transport

__all__ = ["Report", "decide"]

_NO_NAME = "no name found"


@dataclass(frozen=True)
class Report:
    """What was decided about one prompt: one (concept, decision) per membrane."""

    text: str
    decisions: tuple[tuple[str, Decision], ...]

    def __str__(self) -> str:
        lines = [f"γ {concept} = {decision.gamma:g}  ({decision.reason})" for concept, decision in self.decisions]
        return "\n".join([self.text, *lines])


def decide(clip: Any, membranes: Sequence[Membrane], text: str) -> Report:
    """Decide γ of every membrane for a prompt.

    Args:
        clip: ComfyUI's CLIP.
        membranes: whose concepts are looked for.
        text: the prompt.

    Raises:
        CalibrationError: if a stored gate is damaged or of a kind that is not known.
    """
    rule = Transport()
    prompt = _encoded(clip, text)
    decided = [(membrane.name, _told(rule.decide([prompt], _concept(clip, membrane))[0])) for membrane in membranes]
    return Report(text, tuple(decided))


def _concept(clip: Any, membrane: Membrane) -> GatedConcept:
    encoded = tuple(_encoded(clip, name) for name in membrane.concept.names)
    return GatedConcept(membrane.concept, encoded, _encoded(clip, ""), _names_only(membrane.gate))


def _names_only(gate: GateState | None) -> GateState | None:
    """Return a gate with its phrases to keep and known words, and its probe switched off."""
    if gate is None:
        return None
    if gate.kind != "transport":
        raise CalibrationError(f"the gate is of kind {gate.kind!r}; these nodes read kind 'transport' only")
    calibration = dataclasses.replace(Calibration.from_parts(gate.settings, gate.tensors), threshold=None)
    return GateState("transport", *calibration.to_parts())


def _told(decision: Decision) -> Decision:
    if decision.reason.startswith(_NO_NAME):
        return dataclasses.replace(decision, reason=f"{_NO_NAME}; ComfyUI looks at names only")
    return decision


def _encoded(clip: Any, text: str) -> EncodedPrompt:
    """Return a prompt's words and tokens, without states."""
    pieces = next(iter(clip.tokenize(text).values()))
    pairs = [pair for piece in pieces for pair in _own(piece)]
    shown = clip.tokenizer.untokenize(pairs)
    ids = tuple(int(pair[0]) for pair in pairs)
    return EncodedPrompt(text, ids, tuple(str(token) for _, token in shown), torch.zeros(len(ids) + 3, 1))


def _own(piece: Sequence[Any]) -> list[Any]:
    """Return what lies between the start and end tokens of a piece, without tokens of textual inversions."""
    numbers = [pair[0] for pair in piece]
    end = numbers.index(_end_token(numbers)) if len(numbers) > 1 else len(numbers)
    return [pair for pair in piece[1:end] if isinstance(pair[0], int)]


def _end_token(numbers: Sequence[Any]) -> int:
    """The largest number: CLIP's end token is the last of its vocabulary, and every piece has one."""
    return max(number for number in numbers if isinstance(number, int))
