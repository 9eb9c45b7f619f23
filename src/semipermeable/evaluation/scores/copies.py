"""Whether a picture is a copy of a given one: by pixels, or by the descriptors of a network trained to find copies.

Pixels: the distance of two pictures is the root mean square of their difference in [−1, 1]; similarity is 1 minus it.
Descriptors (SSCD, Pizzi et al. 2022, arXiv 2202.10261): similarity is their cosine. A picture counts as a copy of the
reference it resembles most, if that similarity reaches the reference's threshold. Somepalli et al. (2023, arXiv
2212.03860, §5) take 0.5 for SSCD.
"""

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["SSCD_THRESHOLD", "copied", "cosine_similarities", "pixel_similarities"]

SSCD_THRESHOLD = 0.5


def pixel_similarities(pictures: Tensor, references: Tensor) -> Tensor:
    """Return 1 − the root mean square distance, at most 1, shape (pictures, references).

    Args:
        pictures: in [0, 1], shape (n, 3, height, width).
        references: the same shape but for the first number.
    """
    flat, rows = 2 * pictures.flatten(1).double(), 2 * references.flatten(1).double()
    exact = "donot_use_mm_for_euclid_dist"
    return 1 - torch.cdist(flat, rows, compute_mode=exact) / flat.shape[1] ** 0.5


def cosine_similarities(descriptors: Tensor, references: Tensor) -> Tensor:
    """Return cosines, in [−1, 1], shape (pictures, references).

    Args:
        descriptors: shape (pictures, width); need not be of unit length.
        references: shape (references, width).
    """
    return functional.normalize(descriptors.double(), dim=1) @ functional.normalize(references.double(), dim=1).T


def copied(similarities: Tensor, thresholds: Tensor) -> Tensor:
    """Return the index of the reference that each picture copies, −1 where it copies none; shape (pictures,).

    Args:
        similarities: shape (pictures, references).
        thresholds: least similarity of a copy, shape (references,).
    """
    best, index = similarities.max(1)
    return torch.where(best >= thresholds[index], index, torch.full_like(index, -1))
