"""CLIP score and CLIP error rate, on features of any CLIP.

CLIP score (Hessel et al. 2021, arXiv 2104.08718, Eq. 1): `w · max(cos(image, text), 0)` with w = 2.5; papers on erasing
print 100 times that. CLIP error rate of the SPM paper (arXiv 2312.16145, §4.1; defined by its released code): the
share of pictures which the concept's text does **not** fit strictly better than its surrogate's text.
"""

import torch
from torch import Tensor

__all__ = ["CLIP_WEIGHT", "clip_error_rate", "clip_errors", "clip_scores"]

CLIP_WEIGHT = 2.5
"""w of Hessel et al., which spreads the usual cosines over [0, 1]."""


def clip_scores(images: Tensor, texts: Tensor) -> Tensor:
    """Return the CLIP score of each picture with its text, in [0, 2.5].

    Args:
        images: image features, shape (rows, width); need not be of unit length.
        texts: text features, one per picture or one for all.
    """
    return CLIP_WEIGHT * torch.cosine_similarity(images, texts, dim=-1).clamp(min=0)


def clip_errors(images: Tensor, concepts: Tensor, surrogates: Tensor) -> Tensor:
    """Return whether each picture is no longer recognised as its concept, boolean, shape (rows,).

    Args:
        images: image features, shape (rows, width).
        concepts: features of the concept's text.
        surrogates: features of the text it is compared with.
    """
    return clip_scores(images, concepts) <= clip_scores(images, surrogates)


def clip_error_rate(images: Tensor, concepts: Tensor, surrogates: Tensor) -> float:
    """Return the CLIP error rate, in [0, 1]; see `clip_errors`."""
    return float(clip_errors(images, concepts, surrogates).double().mean())
