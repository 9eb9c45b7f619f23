"""Prompts as a permeability rule reads them: own tokens beside the text encoder's states.

What a rule needs of a text encoder: `token_ids` and `tokens` of the prompt's own words, without what the pipeline puts
around them (BOS, EOS, padding, a chat template), and `states` in which own token i stands at row `first + i`. A name
must have the same tokens wherever it stands; where a vocabulary marks the space before a word and writes none before
the first, encode " " + text.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from semipermeable.permeability.decisions import EncodedPrompt

__all__ = ["encoded_prompts", "joined"]

_SPACE = re.compile(r"\s")


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
        ids, seen = _window(tokenizer, read, room)
        tokens = tuple(tokenizer.convert_ids_to_tokens(list(ids)))
        own = states[row] if keep_padding else states[row][: first + len(ids) + 1]
        vector = None if pooled is None else pooled[row].float().cpu()
        own = own.float().cpu().clone()
        encoded.append(EncodedPrompt(text, ids, tokens, own, vector, first=first, room=room, seen=seen))
    return encoded


def _window(tokenizer: Any, text: str, room: int) -> tuple[tuple[int, ...], str | None]:
    """Return the ids of a text's own tokens, at most `room`, and what they were made from, to the end of a word.

    None where the tokenizer does not say it; all of the text where its offsets are not to be trusted.
    """
    offsets = bool(getattr(tokenizer, "is_fast", False))
    arguments = {"add_special_tokens": False, "truncation": True, "max_length": room}
    found = tokenizer(text, return_offsets_mapping=offsets, **arguments)
    ids = tuple(found.input_ids)
    if not offsets or len(ids) < room:
        return ids, None
    space = _SPACE.search(text, max((end for _, end in found.offset_mapping), default=0))
    seen = text if space is None else text[: space.start()]
    return ids, seen if tuple(tokenizer(seen, **arguments).input_ids) == ids else text


def joined(text: str, parts: Sequence[EncodedPrompt]) -> EncodedPrompt:
    """Return one encoded prompt for a row that was made from several texts: their own tokens, one after the other.

    Args:
        text: of the row.
        parts: its texts.
    """
    ids = tuple(token for part in parts for token in part.token_ids)
    own = [part.states[part.first : part.first + len(part.token_ids)] for part in parts]
    before, last = parts[0].states[: parts[0].first], parts[-1]
    after = last.states[last.first + len(last.token_ids) :]
    return EncodedPrompt(
        text,
        ids,
        tuple(token for part in parts for token in part.tokens),
        torch.cat([before, *own, after]),
        parts[0].pooled,
        first=parts[0].first,
        room=len(ids) + 1,
        parts=tuple(parts),
    )
