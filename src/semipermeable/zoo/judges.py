"""Judges of generated pictures: a classifier of object and style, and a small CLIP of its own.

Both saw real icons only, never a generated picture, and share no weight with each other or with the pipeline. The
trunk is a residual network on 64×64 pixels; features are the concatenated mean and maximum over the last map. All
pictures are in [0, 1], shape (B, 3, 64, 64).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from semipermeable.errors import ZooError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Clip", "ClipNetwork", "FeatureStatistics", "Judge", "JudgeNetwork", "Trunk", "Verdict"]

RESOLUTION = 64
_SAMPLE = 350  # what fits the 30 MB of a bundle


class Verdict(NamedTuple):
    """What a judge sees in each picture, as indices into its `objects` and `styles`."""

    object: Tensor
    style: Tensor


@dataclass(frozen=True)
class FeatureStatistics:
    """The judge's features over a set of pictures: mean (D) and covariance (D, D) of all, float64, and a few of them.

    `sample` (S, D) has up to 350 of them, drawn by lot: a kernel distance needs rows, and is unbiased at any number.
    """

    mean: Tensor
    covariance: Tensor
    count: int
    sample: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "FeatureStatistics":
        """Return the statistics of features (N, D), N > 1."""
        rows = features.double()
        drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:_SAMPLE]
        return cls(rows.mean(0), rows.T.cov(), len(rows), rows[drawn])

    def distance(self, other: "FeatureStatistics") -> float:
        """Return the Fréchet distance ‖μ₁−μ₂‖² + tr(C₁ + C₂ − 2(C₁C₂)^½), at least 0 (Heusel et al. 2017)."""
        root = torch.linalg.eigvals(self.covariance @ other.covariance).real.clamp(min=0).sqrt().sum()
        apart = (self.mean - other.mean).square().sum()
        spread = self.covariance.trace() + other.covariance.trace() - 2 * root
        return max(0.0, float(apart + spread))


class _Residual(nn.Module):
    """Two 3×3 convolutions beside a 1×1 one that carries stride and width."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outer)
        self.skip = nn.Conv2d(inner, outer, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(h)) + self.skip(x))


class Trunk(nn.Module):
    """Image trunk: (B, 3, 64, 64) in [0, 1] → features (B, 2 · widths[-1])."""

    def __init__(self, widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        first, *rest = widths
        layers: list[nn.Module] = [nn.Conv2d(3, first, 4, 2, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU()]
        for inner, outer in zip(widths[:-1], rest, strict=True):
            layers.append(_Residual(inner, outer, 2))
        self.layers = nn.Sequential(*layers)
        self.width = 2 * widths[-1]

    def forward(self, images: Tensor) -> Tensor:
        """Return features (B, D) of pictures in [0, 1]."""
        h = self.layers(images * 2 - 1)
        return torch.cat([h.mean((2, 3)), h.amax((2, 3))], dim=1)


class JudgeNetwork(nn.Module):
    """A trunk with one linear head for objects and one for styles."""

    def __init__(self, num_objects: int, num_styles: int, widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.trunk = Trunk(widths)
        self.drop = nn.Dropout(0.2)
        self.object_head = nn.Linear(self.trunk.width, num_objects)
        self.style_head = nn.Linear(self.trunk.width, num_styles)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return object logits and style logits of pictures in [0, 1]."""
        features = self.drop(self.trunk(images))
        return self.object_head(features), self.style_head(features)


class ClipNetwork(nn.Module):
    """An image tower and a small transformer text tower that meet in a space of `width` dimensions."""

    def __init__(self, vocabulary: int, length: int, widths: tuple[int, int, int, int], width: int = 128) -> None:
        super().__init__()
        self.trunk = Trunk(widths)
        self.image_projection = nn.Linear(self.trunk.width, width)
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.randn(length, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.text_projection = nn.Linear(width, width)
        self.log_scale = nn.Parameter(torch.tensor(2.3))

    def embed_images(self, images: Tensor) -> Tensor:
        """Return unit vectors (B, width)."""
        return functional.normalize(self.image_projection(self.trunk(images)), dim=-1)

    def embed_tokens(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return unit vectors (B, width) of token ids (B, T); `mask` (B, T) is true on real tokens."""
        h = self.encoder(self.tokens(ids) + self.positions[: ids.shape[1]], src_key_padding_mask=~mask)
        weight = mask.unsqueeze(-1).to(h.dtype)
        return functional.normalize(self.text_projection((h * weight).sum(1) / weight.sum(1)), dim=-1)


def _check(images: Tensor) -> Tensor:
    if images.ndim != 4 or images.shape[1:] != (3, RESOLUTION, RESOLUTION):
        raise ZooError(f"a judge takes pictures of shape (B, 3, 64, 64) in [0, 1], not {tuple(images.shape)}")
    return images.float().clamp(0, 1)


def _widths(weights: dict[str, Tensor]) -> tuple[int, int, int, int]:
    first, second, third, fourth = (
        weights[f"trunk.layers.{key}"].shape[0]
        for key in ("0.weight", "3.skip.weight", "4.skip.weight", "5.skip.weight")
    )
    return first, second, third, fourth


class Judge:
    """Says which object and style a picture shows.

    Args:
        weights: the `.safetensors` of a `JudgeNetwork`.
        objects: class names, in the order of the object head.
        styles: class names, in the order of the style head.
    """

    def __init__(self, weights: Path, objects: tuple[str, ...], styles: tuple[str, ...]) -> None:
        state = {key: value.float() for key, value in load_file(weights).items()}
        self.objects = objects
        self.styles = styles
        self.network = JudgeNetwork(len(objects), len(styles), _widths(state))
        self.network.load_state_dict(state, strict=False)
        self.network.eval().requires_grad_(False)

    @torch.inference_mode()
    def logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return object logits (B, objects) and style logits (B, styles)."""
        return self.network(_check(images))

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """Return trunk features (B, D) for distances between sets of pictures."""
        return self.network.trunk(_check(images))

    def __call__(self, images: Tensor) -> Verdict:
        """Return the most likely object and style of each picture."""
        objects, styles = self.logits(images)
        return Verdict(objects.argmax(1), styles.argmax(1))


class Clip:
    """A small CLIP for scores of picture against text; its text tower is not the pipeline's.

    Args:
        weights: the `.safetensors` of a `ClipNetwork`.
        tokenizer: turns text into ids (shared vocabulary, no shared weights).
    """

    def __init__(self, weights: Path, tokenizer: "PreTrainedTokenizerBase") -> None:
        state = {key: value.float() for key, value in load_file(weights).items()}
        vocabulary, width = state["tokens.weight"].shape
        self.tokenizer = tokenizer
        self.network = ClipNetwork(vocabulary, state["positions"].shape[0], _widths(state), width)
        self.network.load_state_dict(state, strict=False)
        self.network.eval().requires_grad_(False)

    @torch.inference_mode()
    def image_features(self, images: Tensor) -> Tensor:
        """Return unit vectors (B, D) of pictures in [0, 1]."""
        return self.network.embed_images(_check(images))

    @torch.inference_mode()
    def text_features(self, texts: list[str]) -> Tensor:
        """Return unit vectors (B, D) of texts."""
        length = self.network.positions.shape[0]
        rows = self.tokenizer(texts, padding="longest", truncation=True, max_length=length, return_tensors="pt")
        return self.network.embed_tokens(rows["input_ids"], rows["attention_mask"].bool())
