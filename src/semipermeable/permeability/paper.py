"""Facilitated transport exactly as in the paper (arXiv 2312.16145, Eq. 10 and 11).

`γ(c, p) = max(cos(T(c), T(p)), |tokens(c) ∩ tokens(p)| / |tokens(c)|)`, clipped to [0, 1], T the text encoding. It
is decided per prompt, and for a concept with aliases the largest γ over its names counts. T is by default the whole
conditioning the denoiser receives, flattened, BOS, EOS and padding included, as in the reference code; it never
nears 0 between short prompts because most of what is compared is padding. See docs/gate.md for what that costs.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from torch.nn import functional

from semipermeable.errors import PermeabilityError
from semipermeable.permeability.decisions import Decision, EncodedPrompt, GatedConcept, largest

__all__ = ["PaperTransport"]


class PaperTransport:
    """The paper's rule.

    Args:
        encoding: which text encodings the cosine takes: "flattened", the conditioning (sequence · dim,) with BOS
            and padding; or "pooled", the encoder's pooled vector (dim,).

    Raises:
        PermeabilityError: if `encoding` is neither.
    """

    def __init__(self, encoding: Literal["flattened", "pooled"] = "flattened") -> None:
        if encoding not in ("flattened", "pooled"):
            raise PermeabilityError(f'encoding must be "flattened" or "pooled", found {encoding!r}')
        self.encoding = encoding

    def decide(self, prompts: Sequence[EncodedPrompt], concept: GatedConcept) -> list[Decision]:
        """Return γ for every prompt: the larger of cosine and token share, over all names and texts of a row.

        Raises:
            PermeabilityError: if "pooled" is asked for and the text encoder pools nothing.
        """
        return [largest(self._one(text, concept) for text in prompt.each()) for prompt in prompts]

    def _one(self, prompt: EncodedPrompt, concept: GatedConcept) -> Decision:
        return largest(self._against(prompt, name) for name in concept.encoded)

    def _against(self, prompt: EncodedPrompt, name: EncodedPrompt) -> Decision:
        one, other = self._encoding(name), self._encoding(prompt)
        # Encoders without fixed padding give encodings of different lengths: what is missing counts as zero.
        length = max(len(one), len(other))
        padded = (functional.pad(encoding, (0, length - len(encoding))) for encoding in (one, other))
        cosine = functional.cosine_similarity(*padded, dim=0).item()
        wanted = dict(zip(name.token_ids, name.tokens, strict=True))
        present = set(prompt.token_ids)
        shared = tuple(token for token_id, token in wanted.items() if token_id in present)
        share = len(shared) / len(wanted) if wanted else 0.0
        gamma = min(max(cosine, share, 0.0), 1.0)
        reason = f"max of cosine {cosine:.2f} and token share {share:.2f} with {name.text!r}"
        return Decision(gamma, reason, similarity=cosine, matched=shared)

    def _encoding(self, prompt: EncodedPrompt) -> Tensor:
        if self.encoding == "flattened":
            return prompt.states.flatten().double()
        if prompt.pooled is None:
            raise PermeabilityError('this text encoder has no pooled encoding; use PaperTransport("flattened")')
        return prompt.pooled.double()

    def __repr__(self) -> str:
        return f"PaperTransport({self.encoding!r})"
