"""Prompts as a permeability rule reads them: own tokens beside the text encoder's states.

What a rule needs of a text encoder: `token_ids` and `tokens` of the prompt's own words, without what the pipeline puts
around them (BOS, EOS, padding, a chat template), and `states` in which own token i stands at row `first + i`. A name
must have the same tokens wherever it stands; where a vocabulary marks the space before a word and writes none before
the first, encode " " + text.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from semipermeable.permeability.decisions import EncodedPrompt

__all__ = ["encoded_prompts"]


def encoded_prompts(
    tokenizer: Any,
    prompts: Sequence[str],
    states: Tensor | Sequence[Tensor],
    *,
    pooled: Tensor | None = None,
    first: int,
    room: int,
    keep_padding: bool,
    space_before: bool = False,
) -> list[EncodedPrompt]:
    """Join texts, their own tokens and their states.

    Args:
        tokenizer: a private copy (`Host.tokenizer`).
        prompts: texts.
        states: one (sequence, dim) per prompt.
        pooled: shape (prompts, dim), or None.
        first: index in `states` of the first own token: 0 without a BOS, 1 with one, more after a template.
        room: how many own tokens the encoder's window takes.
        keep_padding: whether the denoiser reads padding like text. Otherwise states end one row after the own tokens,
            which keeps thousands of encoded prompts small.
        space_before: see the module; `states` must then be those of " " + text.
    """
    encoded: list[EncodedPrompt] = []
    for row, text in enumerate(prompts):
        read = " " + text if space_before and text else text
        ids = tuple(tokenizer(read, add_special_tokens=False, truncation=True, max_length=room).input_ids)
        tokens = tuple(tokenizer.convert_ids_to_tokens(list(ids)))
        own = states[row] if keep_padding else states[row][: first + len(ids) + 1]
        vector = None if pooled is None else pooled[row].float().cpu()
        encoded.append(EncodedPrompt(text, ids, tokens, own.float().cpu().clone(), vector, first=first, room=room))
    return encoded
