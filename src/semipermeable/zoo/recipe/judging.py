"""The judges: trained on real drawings only, tested on drawings that neither they nor the denoiser ever saw.

The classifier is taught object and style with label smoothing. The small CLIP is taught with a contrastive loss whose
targets are shared among all pictures that a caption fits: "an icon of an animal" is right for every animal of the
batch, not for one. Neither takes a weight from the pipeline or from the other; CLIP shares the vocabulary alone.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTokenizer

from semipermeable.zoo.judges import ClipNetwork, FeatureStatistics, JudgeNetwork
from semipermeable.zoo.recipe.captions import CaptionBook
from semipermeable.zoo.recipe.catalogue import Catalogue
from semipermeable.zoo.recipe.loop import Budget, train
from semipermeable.zoo.recipe.pictures import Pictures, to_unit
from semipermeable.zoo.recipe.text import LENGTH, tokenise

__all__ = [
    "JUDGE_WIDTHS",
    "Exam",
    "examine",
    "examine_clip",
    "new_clip",
    "new_judge",
    "real_statistics",
    "train_clip",
    "train_judge",
]

JUDGE_WIDTHS = (40, 80, 128, 192)
"""Channels of the classifier's trunk."""
CLIP_WIDTHS = (32, 64, 96, 128)
"""Channels of CLIP's image trunk."""

SHIFT = 4
"""Pixels by which a picture is moved at most, in each direction, while training."""


@dataclass(frozen=True, kw_only=True)
class Exam:
    """What a judge got right on held-out drawings: shares in [0, 1]."""

    pictures: int
    drawings: int
    object: float
    style: float
    object_or_twin: float
    """The object, or one of its near twins."""
    by_style: dict[str, float]
    """Share of right objects among the pictures of each style."""
    twin_groups: dict[str, float]
    """Share of right objects among the pictures of each class of near twins, named by its members."""


def new_judge(catalogue: Catalogue) -> JudgeNetwork:
    """Return an untrained classifier for a catalogue."""
    return JudgeNetwork(len(catalogue.spec.objects), len(catalogue.spec.styles), JUDGE_WIDTHS)


def new_clip(tokenizer: CLIPTokenizer) -> ClipNetwork:
    """Return an untrained small CLIP for a vocabulary."""
    return ClipNetwork(len(tokenizer), LENGTH, CLIP_WIDTHS)


def _vary(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror, move, tint, blur, speckle and partly hide pictures (B, 3, 64, 64)."""
    count, side = len(images), images.shape[-1]

    def chance(share: float) -> Tensor:
        return torch.rand(count, 1, 1, 1, generator=generator) < share

    images = torch.where(chance(0.5), images.flip(-1), images)
    padded = functional.pad(images, (SHIFT,) * 4, mode="replicate")
    offsets = torch.randint(2 * SHIFT + 1, (2, count, 1), generator=generator) + torch.arange(side)
    rows = torch.arange(count)[:, None, None]
    images = padded.permute(0, 2, 3, 1)[rows, offsets[0][:, :, None], offsets[1][:, None, :]].permute(0, 3, 1, 2)
    gain = 1 + 0.15 * (2 * torch.rand(count, 3, 1, 1, generator=generator) - 1)
    lift = 0.06 * (2 * torch.rand(count, 3, 1, 1, generator=generator) - 1)
    images = images * gain + lift
    blurred = functional.avg_pool2d(functional.pad(images, (1,) * 4, mode="replicate"), 3, 1)
    images = torch.where(chance(0.3), 0.5 * images + 0.5 * blurred, images)
    images = images + torch.where(chance(0.4), 0.04, 0.0) * torch.randn(images.shape, generator=generator)
    where = torch.randint(side, (2, count, 1), generator=generator)
    reach = torch.randint(4, 9, (count, 1), generator=generator)
    near = (torch.arange(side) - where).abs() < reach
    hidden = near[0][:, None, :, None] & near[1][:, None, None, :] & chance(0.4)
    return torch.where(hidden, 0.5, images).clamp(0, 1)


def train_judge(
    judge: JudgeNetwork,
    pictures: Pictures,
    budget: Budget,
    *,
    seed: int,
    checkpoint: Path | None,
    progress: bool,
    stop_at: int | None = None,
) -> int:
    """Train the classifier in place.

    Args:
        judge: what is trained.
        pictures: pictures of drawings that are not held out.
        budget: how long and how fast.
        seed: seed of every draw.
        checkpoint: where to resume and store; None keeps nothing.
        progress: whether to show a bar.
        stop_at: stop after this step as if interrupted.

    Returns:
        The number of steps done.
    """
    objects, styles = torch.from_numpy(pictures.objects), torch.from_numpy(pictures.styles)

    def loss(generator: torch.Generator) -> Tensor:
        rows, images = _draw(pictures, budget.batch, generator)
        object_logits, style_logits = judge(_vary(images, generator))
        return functional.cross_entropy(object_logits, objects[rows], label_smoothing=0.1) + 0.5 * (
            functional.cross_entropy(style_logits, styles[rows], label_smoothing=0.05)
        )

    steps = train(
        judge, loss, budget, seed=seed, checkpoint=checkpoint, label="judge", progress=progress, stop_at=stop_at
    )
    _settle_norms(judge.trunk, pictures, seed)
    return steps


def train_clip(
    clip: ClipNetwork,
    book: CaptionBook,
    tokenizer: CLIPTokenizer,
    pictures: Pictures,
    budget: Budget,
    *,
    seed: int,
    checkpoint: Path | None,
    progress: bool,
    stop_at: int | None = None,
) -> int:
    """Train the small CLIP in place; arguments as of `train_judge`, and every caption with its tokenizer."""
    ids = tokenise(tokenizer, book.texts)
    mask = _real_tokens(ids, tokenizer)
    says = torch.tensor([[c.object, c.style, c.group] for c in book.captions])
    groups = torch.tensor([book.groups.index(thing.group) for thing in book.spec.objects])
    objects, styles = torch.from_numpy(pictures.objects), torch.from_numpy(pictures.styles)

    def loss(generator: torch.Generator) -> Tensor:
        rows, images = _draw(pictures, budget.batch, generator)
        captions = torch.tensor(book.draw(objects[rows].tolist(), styles[rows].tolist(), generator))
        shown = torch.stack([objects[rows], styles[rows], groups[objects[rows]]], dim=1)
        told = says[captions]
        fits = ((told[None] == shown[:, None]) | (told[None] < 0)).all(-1).float()
        seen = clip.embed_images(_vary(images, generator))
        read = clip.embed_tokens(ids[captions], mask[captions])
        logits = clip.log_scale.exp().clamp(max=50) * seen @ read.T
        # The empty caption fits everything and says nothing: it is no one's answer.
        fits = fits * (told >= 0).any(1).float()
        named = (told >= 0).any(1)
        by_picture = functional.cross_entropy(logits, _shares(fits))
        by_caption = functional.cross_entropy(logits.T[named], _shares(fits.T[named]))
        return (by_picture + by_caption) / 2

    steps = train(
        clip, loss, budget, seed=seed, checkpoint=checkpoint, label="clip", progress=progress, stop_at=stop_at
    )
    _settle_norms(clip.trunk, pictures, seed)
    return steps


def _shares(fits: Tensor) -> Tensor:
    return fits / fits.sum(1, keepdim=True).clamp(min=1)


def _real_tokens(ids: Tensor, tokenizer: CLIPTokenizer) -> Tensor:
    """Return which positions (captions, 24) are up to and with the first end-of-text token."""
    end: Any = tokenizer.eos_token_id
    ended = (ids == int(end)).int().cumsum(1)
    return (ended == 0) | ((ids == int(end)) & (ended == 1))


def _draw(pictures: Pictures, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw rows and one jitter of each, as pictures in [0, 1]."""
    jitters = pictures.pixels.shape[1]
    rows = torch.randint(len(pictures.objects), (count,), generator=generator)
    which = torch.randint(jitters, (count,), generator=generator)
    return rows, to_unit(pictures.pixels[rows.numpy(), which.numpy()])


@torch.no_grad()
def _settle_norms(trunk: nn.Module, pictures: Pictures, seed: int) -> None:
    """Measure the batch norms' statistics anew: those kept in training belong to weights that were averaged away."""
    norms = [module for module in trunk.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    trunk.train()
    generator = torch.Generator().manual_seed(seed)
    for _ in range(40):
        trunk(_vary(_draw(pictures, 128, generator)[1], generator))
    for norm in norms:
        norm.momentum = 0.1
    trunk.eval()


@torch.inference_mode()
def examine(judge: JudgeNetwork, catalogue: Catalogue, pictures: Pictures) -> Exam:
    """Return what the classifier gets right on pictures of held-out drawings, every jitter counted."""
    spec = catalogue.spec
    jitters = pictures.pixels.shape[1]
    images = pictures.pixels.reshape(-1, *pictures.pixels.shape[2:])
    verdicts = [judge(to_unit(images[first : first + 256])) for first in range(0, len(images), 256)]
    seen_object = torch.cat([objects.argmax(1) for objects, _ in verdicts]).numpy()
    seen_style = torch.cat([styles.argmax(1) for _, styles in verdicts]).numpy()
    objects, styles = pictures.objects.repeat(jitters), pictures.styles.repeat(jitters)
    kin = np.eye(len(spec.objects), dtype=bool)
    for index, thing in enumerate(spec.objects):
        kin[index, [spec.object_names.index(twin) for twin in thing.twins]] = True
    right = seen_object == objects
    classes = {(thing.name, *thing.twins) for thing in spec.objects if thing.twins}
    members = {", ".join(names): names for names in classes if names[0] == min(names)}
    return Exam(
        pictures=len(objects),
        drawings=len({(int(o), d) for o, d in zip(pictures.objects, pictures.designers, strict=True)}),
        object=float(right.mean()),
        style=float((seen_style == styles).mean()),
        object_or_twin=float(kin[objects, seen_object].mean()),
        by_style={style: float(right[styles == s].mean()) for s, style in enumerate(spec.styles) if s in styles},
        twin_groups={
            label: float(right[asked].mean())
            for label, names in sorted(members.items())
            if (asked := np.isin(objects, [spec.object_names.index(name) for name in names])).any()
        },
    )


@torch.inference_mode()
def examine_clip(
    clip: ClipNetwork, catalogue: Catalogue, tokenizer: CLIPTokenizer, pictures: Pictures
) -> dict[str, float]:
    """Return CLIP's mean score of a held-out picture with its caption and with another's, and top-1 of all captions."""
    spec = catalogue.spec
    ids = tokenise(tokenizer, list(spec.captions()))
    read = clip.embed_tokens(ids, _real_tokens(ids, tokenizer))
    images = pictures.pixels[:, 0]
    seen = torch.cat([clip.embed_images(to_unit(images[i : i + 256])) for i in range(0, len(images), 256)])
    own = torch.from_numpy(pictures.objects * len(spec.styles) + pictures.styles)
    scores = seen @ read.T
    other = own[torch.randperm(len(own), generator=torch.Generator().manual_seed(0))]
    return {
        "score": float(scores[torch.arange(len(own)), own].mean()),
        "score_shuffled": float(scores[torch.arange(len(own)), other].mean()),
        "top1_of_all_captions": float((scores.argmax(1) == own).float().mean()),
    }


@torch.inference_mode()
def real_statistics(judge: JudgeNetwork, pictures: Pictures) -> FeatureStatistics:
    """Return mean and covariance of the classifier's features over every picture and jitter."""
    images = pictures.pixels.reshape(-1, *pictures.pixels.shape[2:])
    features = torch.cat([judge.trunk(to_unit(images[i : i + 256])) for i in range(0, len(images), 256)])
    return FeatureStatistics.of(features)
