"""The text encoder: a small CLIP text model, taught new words while its old sentences keep their states.

Where a start is given (an older encoder), its states h̄ of every caption it knows are targets, so that a denoiser
trained with it stays usable: L = ‖h − h̄‖² + ¼ Σ CE(head(h_EOS), what the caption says). An alias ("kitty") is pulled
to the state of the caption with the main name from the end-of-text token on. Without a start, the heads alone teach
it.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from semipermeable.zoo.recipe.captions import CaptionBook
from semipermeable.zoo.recipe.loop import Budget, train

__all__ = ["LENGTH", "encode", "tokenise", "train_text_encoder"]

LENGTH = 24
"""Tokens of a prompt."""


def tokenise(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Return token ids (B, 24)."""
    rows: Any = tokenizer(texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
    return rows["input_ids"]


@torch.inference_mode()
def encode(encoder: CLIPTextModel, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return states (B, 24, D) and pooled states (B, D) of token ids."""
    states, pooled = zip(
        *((out[0], out[1]) for out in (encoder(input_ids=part) for part in ids.split(256))), strict=True
    )
    return torch.cat(states), torch.cat(pooled)


def _id(token: Any) -> int:
    """Narrow a special token's id, which transformers types as nearly anything."""
    return int(token)


class _Taught(nn.Module):
    """The encoder and the heads that say what a caption says; the heads are thrown away."""

    def __init__(self, encoder: CLIPTextModel, book: CaptionBook) -> None:
        super().__init__()
        width = int(encoder.config.hidden_size)
        self.encoder = encoder
        self.object = nn.Linear(width, len(book.spec.objects))
        self.style = nn.Linear(width, len(book.spec.styles))
        self.group = nn.Linear(width, len(book.groups))


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Return an untrained text encoder of the size that bundled models use."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=768,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            projection_dim=192,
            bos_token_id=_id(tokenizer.bos_token_id),
            eos_token_id=_id(tokenizer.eos_token_id),
            pad_token_id=_id(tokenizer.pad_token_id),
            hidden_act="quick_gelu",
        )
    )


def train_text_encoder(
    book: CaptionBook,
    tokenizer: CLIPTokenizer,
    budget: Budget,
    *,
    start: CLIPTextModel | None,
    known_styles: tuple[str, ...],
    seed: int,
    checkpoint: Path | None,
    progress: bool,
) -> CLIPTextModel:
    """Train the text encoder.

    Args:
        book: every caption.
        tokenizer: its tokenizer.
        budget: how long and how fast.
        start: an encoder whose states of captions in `known_styles` are kept; None starts from nothing.
        known_styles: styles that `start` was trained on.
        seed: seed of every draw.
        checkpoint: where to resume and store.
        progress: whether to show a bar.
    """
    ids = tokenise(tokenizer, book.texts)
    said = torch.tensor([[c.object, c.style, c.group] for c in book.captions])
    encoder = new_text_encoder(tokenizer)
    keeps = torch.zeros(len(ids), LENGTH, dtype=torch.bool)
    targets = pooled_targets = torch.zeros(0)
    if start is not None:
        encoder.load_state_dict(start.state_dict())
        plain = [c.plain if c.plain is not None else c.text for c in book.captions]
        plain_ids = tokenise(tokenizer, plain)
        targets, pooled_targets = encode(start, plain_ids)
        targets, pooled_targets = targets.clone(), pooled_targets.clone()
        keeps = _kept_positions(book, ids, plain_ids, known_styles, _id(tokenizer.eos_token_id))
    old = torch.nonzero(keeps.any(1)).flatten()
    new = torch.nonzero(~keeps.any(1)).flatten()
    taught = _Taught(encoder, book)

    def loss(generator: torch.Generator) -> Tensor:
        share = 0 if len(old) == 0 else budget.batch * 5 // 8
        parts = [pool[torch.randint(len(pool), (n,), generator=generator)] for pool, n in ((old, share),) if n]
        parts.append(new[torch.randint(len(new), (budget.batch - share,), generator=generator)])
        rows = torch.cat(parts)
        out = taught.encoder(input_ids=ids[rows])
        states, pooled = out[0], out[1]
        total = states.new_zeros(())
        if share:
            mask = keeps[rows]
            total = total + ((states - targets[rows]) ** 2).mean(-1)[mask].mean()
            held = mask.any(1)
            total = total + ((pooled - pooled_targets[rows]) ** 2).mean(-1)[held].mean()
        for column, head in enumerate((taught.object, taught.style, taught.group)):
            says = said[rows, column]
            if bool((says >= 0).any()):
                total = total + 0.25 * functional.cross_entropy(head(pooled), says, ignore_index=-1)
        return total

    train(taught, loss, budget, seed=seed, checkpoint=checkpoint, label="text encoder", progress=progress)
    return encoder.eval().requires_grad_(False)


def _kept_positions(
    book: CaptionBook, ids: Tensor, plain_ids: Tensor, known_styles: tuple[str, ...], end: int
) -> Tensor:
    """Return which positions (captions, 24) have a target: all of a known caption, the padding of one with an alias."""
    known = {book.spec.styles.index(style) for style in known_styles if style in book.spec.styles} | {-1}
    keeps = torch.zeros(ids.shape, dtype=torch.bool)
    for row, caption in enumerate(book.captions):
        if caption.style not in known or (
            caption.object < 0 and caption.group < 0 and caption.style < 0 and caption.text
        ):
            continue
        if caption.plain is None:
            keeps[row] = True
        else:
            first = max(int((side[row] == end).nonzero()[0]) for side in (ids, plain_ids))
            keeps[row, first + 1 :] = True
    return keeps
