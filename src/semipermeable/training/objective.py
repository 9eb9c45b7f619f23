"""What is minimised, as pure functions of predictions (SPM, Eq. 4 to 8), in the model's own prediction space.

With ε the prediction of the base model, ε_M that of the model with the membrane open, x_t a noisy latent, c_tar, c_sur
and c_a text conditions:

    goal    = ε(x_t, c_sur) − η (ε(x_t, c_tar) − ε(x_t, c_sur))                               (Eq. 4, right side)
    L_era   = ‖ε_M(x_t, c_tar) − goal‖²                                                       (Eq. 4)
    P(a)    ∝ (1 − |cos(c_a, c_tar)|)^α                                                       (Eq. 6)
    L_anc   = mean over drawn a of ‖ε_M(x_t, c_a) − ε(x_t, c_a)‖²                             (Eq. 5, 7)
    L       = L_era + λ L_anc                                                                 (Eq. 8)

At fixed x_t, ε, v and flow velocity are affine in each other with the same coefficients for every condition, so the
goal is the same picture in each space; only the weight over t differs (1/α_t² for v, 1/(1−t)² for flow), which λ has
to absorb. Norms are means over the elements of a row, so λ does not depend on the size of the latent.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["anchor_probabilities", "erasing_goal", "row_losses", "total_loss"]


def erasing_goal(target: Tensor, surrogate: Tensor, negative_guidance: float) -> Tensor:
    """Return what the membrane should make of a target row (Eq. 4, right side).

    Args:
        target: ε(x_t, c_tar) of the base model, shape (rows, ...).
        surrogate: ε(x_t, c_sur) of the base model, same shape.
        negative_guidance: η; 0 stops at the surrogate.
    """
    return surrogate - negative_guidance * (target - surrogate)


def row_losses(prediction: Tensor, goal: Tensor) -> Tensor:
    """Return the mean squared error of each row, shape (rows,), fp32.

    Args:
        prediction: with the membrane open, shape (rows, ...).
        goal: same shape.
    """
    return F.mse_loss(prediction.float(), goal.float(), reduction="none").flatten(1).mean(1)


def total_loss(erasing: Tensor, anchoring: Tensor, anchor_weight: float) -> Tensor:
    """Return L = L_era + λ L_anc (Eq. 8) from the row losses of both kinds.

    Args:
        erasing: row losses of target rows, shape (rows,).
        anchoring: row losses of anchor rows, shape (rows,); may be empty.
        anchor_weight: λ.
    """
    loss = erasing.mean()
    return loss + anchor_weight * anchoring.mean() if anchoring.numel() else loss


def anchor_probabilities(anchors: Tensor, target: Tensor, power: float) -> Tensor:
    """Return P(a) ∝ (1 − |cos(c_a, c_tar)|)^α over candidate anchors (Eq. 6), shape (anchors,), float64.

    Args:
        anchors: one encoding per candidate, shape (anchors, dim).
        target: encoding of the concept, shape (dim,).
        power: α; 0 draws uniformly.
    """
    cosine = F.cosine_similarity(anchors.double(), target.double()[None], dim=1)
    weight = (1 - cosine.abs()).clamp_min(0) ** power
    total = weight.sum()
    return weight / total if float(total) > 0 else torch.full_like(weight, 1 / max(len(weight), 1))
