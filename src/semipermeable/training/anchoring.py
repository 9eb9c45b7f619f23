"""Which text conditions must not change: anchors (SPM, Eq. 5 to 7)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from semipermeable.hosts import Condition
from semipermeable.permeability.decisions import EncodedPrompt
from semipermeable.training.objective import anchor_probabilities

__all__ = ["choose_captions", "gaussian_anchors"]

_CANDIDATES = 5
"""Gaussian candidates drawn for each anchor that is chosen among them by Eq. 6."""


def _encoding(prompt: EncodedPrompt) -> Tensor:
    """The pooled vector; of an encoder without one, the mean over the prompt's own tokens and the one after them."""
    if prompt.pooled is not None:
        return prompt.pooled
    return prompt.states[prompt.first : prompt.first + len(prompt.token_ids) + 1].mean(0)


def choose_captions(
    anchors: list[EncodedPrompt],
    target: EncodedPrompt,
    twins: set[str],
    *,
    count: int,
    power: float,
    twin_share: float,
    generator: torch.Generator,
) -> list[int]:
    """Draw anchors among captions: a share about near neighbours, uniformly, the rest by Eq. 6.

    Eq. 6 alone prefers what is far from the concept, where nothing is at risk; hence the share.

    Args:
        anchors: encoded candidates.
        target: the concept's name, encoded.
        twins: texts of the candidates about near neighbours.
        count: how many; drawn without replacement while candidates last.
        power: α.
        twin_share: share of near neighbours, in [0, 1].
        generator: CPU generator.

    Returns:
        `count` indices into `anchors`; empty if there are none.
    """
    near = [index for index, prompt in enumerate(anchors) if prompt.text in twins]
    far = [index for index, prompt in enumerate(anchors) if prompt.text not in twins]
    num_near = min(math.floor(count * twin_share + 0.5), count) if near else 0
    if not far:
        num_near = count if near else 0
    chosen: list[int] = []
    if num_near:
        chosen += _draw(near, torch.ones(len(near), dtype=torch.float64), num_near, generator)
    if far:
        stacked = torch.stack([_encoding(anchors[index]) for index in far])
        weights = anchor_probabilities(stacked, _encoding(target), power)
        chosen += _draw(far, weights, count - num_near, generator)
    return chosen


def _draw(indices: list[int], weights: Tensor, count: int, generator: torch.Generator) -> list[int]:
    if not count:
        return []
    enough = int((weights > 0).sum()) >= count
    drawn = torch.multinomial(weights, count, replacement=not enough, generator=generator)
    return [indices[index] for index in drawn.tolist()]


def gaussian_anchors(target: Condition, count: int, power: float, generator: torch.Generator) -> Condition:
    """Draw anchors as the reference code does: Gaussian noise in the place of text states, chosen by Eq. 6.

    In so many dimensions noise is orthogonal to everything: the weights are all but equal. Every part of the condition
    is replaced by noise of its own norm; masks stay.

    Args:
        target: the concept's condition, one row.
        count: how many.
        power: α.
        generator: CPU generator.

    Returns:
        `count` conditions, in dtype and device of `target`.
    """
    own = {name: part.float().cpu() for name, part in target.parts.items() if part.is_floating_point()}
    drawn = {
        name: torch.randn((count * _CANDIDATES, *part.shape[1:]), generator=generator) for name, part in own.items()
    }
    noise = {name: F.normalize(rows.flatten(1), dim=1) * own[name].norm() for name, rows in drawn.items()}
    flat = torch.cat([part.flatten() for part in own.values()])
    weights = anchor_probabilities(torch.cat(list(noise.values()), 1), flat, power)
    chosen = torch.multinomial(weights, count, generator=generator) if count else torch.empty(0, dtype=torch.long)
    return Condition(
        {
            name: noise[name][chosen].reshape(count, *part.shape[1:]).to(part)
            if name in noise
            else part.expand(count, *part.shape[1:])
            for name, part in target.parts.items()
        }
    )
