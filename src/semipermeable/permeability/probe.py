"""A small linear probe on a text encoder's token states: does any token of this prompt carry the concept?

`s(p) = max_t (w · h_t + b)` over the prompt's own tokens and the one after them (EOS), h_t the state of token t. w
is a regularised logistic regression, found by a fixed number of Newton steps in float64, hence deterministic:
positives are the last tokens of the name wherever it stands, negatives are all tokens of all other prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from semipermeable.permeability.decisions import EncodedPrompt

__all__ = ["Probe", "at_border", "carries_name", "fit_probe", "own_states", "token_spans"]

_DECAY = 1e-2
_NEWTON_STEPS = 6


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear score of token states.

    Args:
        weight: w, shape (dim,), float64.
        bias: b.
    """

    weight: Tensor
    bias: float

    def score(self, prompt: EncodedPrompt) -> float:
        """Return the largest token score of a prompt."""
        return float((own_states(prompt) @ self.weight).max()) + self.bias


def own_states(prompt: EncodedPrompt) -> Tensor:
    """Return the states of a prompt's own tokens and the one after them, shape (tokens, dim), float64."""
    end = prompt.first + len(prompt.token_ids) + 1
    return prompt.states[prompt.first : end].double()


def token_spans(prompt: EncodedPrompt, name: EncodedPrompt) -> list[tuple[int, int]]:
    """Return where a name's tokens stand in a prompt, in one piece and at word borders, as [start, end)."""
    wanted, length = name.token_ids, len(name.token_ids)
    starts = range(len(prompt.token_ids) - length + 1) if length else ()
    return [
        (i, i + length)
        for i in starts
        if prompt.token_ids[i : i + length] == wanted
        and at_border(prompt.tokens, i)
        and at_border(prompt.tokens, i + length)
    ]


def carries_name(prompt: EncodedPrompt, names: Sequence[EncodedPrompt]) -> bool:
    """Whether the last token of a name is among a prompt's tokens, be it inside another word ("dande|lion")."""
    return any(name.token_ids and name.token_ids[-1] in prompt.token_ids for name in names)


def at_border(tokens: Sequence[str], index: int) -> bool:
    """Whether a word begins at a token, by the marks of CLIP (</w>), GPT (Ġ) and SentencePiece (▁) vocabularies.

    Without such marks every token is taken for a word.
    """
    if index in (0, len(tokens)):
        return True
    if any(token.endswith("</w>") for token in tokens):
        return tokens[index - 1].endswith("</w>")
    if any(token.startswith(("▁", "Ġ")) for token in tokens):
        return tokens[index].startswith(("▁", "Ġ"))
    return True


def fit_probe(
    positives: Sequence[EncodedPrompt], negatives: Sequence[EncodedPrompt], names: Sequence[EncodedPrompt]
) -> Probe | None:
    """Fit a probe; None if the names' tokens stand in none of the positives.

    Args:
        positives: prompts about the concept.
        negatives: prompts about other things.
        names: the concept's names and their plurals, to find its tokens.
    """
    carriers = [
        own_states(prompt)[end - 1] for prompt in positives for name in names for _, end in token_spans(prompt, name)
    ]
    if not carriers:
        return None
    return _logistic(torch.stack(carriers), torch.cat([own_states(prompt) for prompt in negatives]))


def _logistic(positive: Tensor, negative: Tensor) -> Probe:
    """Newton's method on the class-balanced, L2-regularised logistic loss of centred and scaled states."""
    x = torch.cat([positive, negative])
    y = torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))]).double()
    balance = torch.where(y > 0, 0.5 / len(positive), 0.5 / len(negative))
    centre = negative.mean(0)
    scale = (negative - centre).square().mean().sqrt().clamp_min(1e-12)
    x = torch.cat([(x - centre) / scale, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    ridge = torch.full((x.shape[1],), _DECAY, dtype=x.dtype)
    ridge[-1] = 1e-9
    w = torch.zeros(x.shape[1], dtype=x.dtype)
    for _ in range(_NEWTON_STEPS):
        p = torch.sigmoid(x @ w)
        gradient = x.T @ (balance * (p - y)) + ridge * w
        hessian = (x * (balance * p * (1 - p)).unsqueeze(1)).T @ x + torch.diag(ridge)
        w = w - torch.linalg.solve(hessian, gradient)
    weight = w[:-1] / scale
    return Probe(weight, float(w[-1] - weight @ centre))
