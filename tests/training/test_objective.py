import pytest
import torch
from torch.testing import assert_close

from semipermeable.hosts import Condition
from semipermeable.training.anchoring import choose_captions, gaussian_anchors
from semipermeable.training.objective import anchor_probabilities, erasing_goal, row_losses, total_loss


def test_goal_without_guidance_is_the_surrogate(generator):
    target, surrogate = torch.randn(2, 3, 4, 8, 8, generator=generator)
    assert_close(erasing_goal(target, surrogate, 0.0), surrogate)


def test_goal_with_guidance_mirrors_the_target_at_the_surrogate(generator):
    target, surrogate = torch.randn(2, 3, 4, 8, 8, generator=generator)
    assert_close(erasing_goal(target, surrogate, 1.0), 2 * surrogate - target)


def test_goal_is_the_same_picture_in_v_space(generator):
    target, surrogate, x = torch.randn(3, 2, 4, 8, 8, generator=generator)
    alpha, sigma = 0.8, 0.6

    def to_v(eps):
        return (eps - sigma * x) / alpha

    assert_close(erasing_goal(to_v(target), to_v(surrogate), 1.5), to_v(erasing_goal(target, surrogate, 1.5)))


def test_row_losses_are_means_over_each_row():
    prediction = torch.zeros(2, 1, 2, 2)
    goal = torch.stack([torch.ones(1, 2, 2), torch.full((1, 2, 2), 3.0)])
    assert_close(row_losses(prediction, goal), torch.tensor([1.0, 9.0]))


def test_total_loss_weighs_anchors():
    assert_close(total_loss(torch.tensor([1.0, 3.0]), torch.tensor([0.5]), 10.0), torch.tensor(7.0))
    assert_close(total_loss(torch.tensor([1.0, 3.0]), torch.empty(0), 10.0), torch.tensor(2.0))


def test_anchor_probabilities_follow_equation_6():
    target = torch.tensor([1.0, 0.0])
    anchors = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.0, 5.0], [1.0, 1.0]])
    weight = 1 - torch.tensor([1.0, 1.0, 0.0, 0.5**0.5], dtype=torch.float64)
    assert_close(anchor_probabilities(anchors, target, 1.0), weight / weight.sum(), atol=1e-7, rtol=1e-6)
    assert_close(anchor_probabilities(anchors, target, 0.0), torch.full((4,), 0.25, dtype=torch.float64))


def test_gaussian_anchors_are_all_but_orthogonal_so_the_weights_say_nothing(generator):
    mask = torch.tensor([[True] * 20 + [False] * 4])
    target = Condition({"text": torch.randn(1, 24, 192, generator=generator), "mask": mask})
    anchors = gaussian_anchors(target, 4, 1.0, generator)
    assert anchors["text"].shape == (4, 24, 192)
    assert torch.equal(anchors["mask"], mask.expand(4, -1))
    cosine = torch.nn.functional.cosine_similarity(anchors["text"].flatten(1), target["text"].flatten()[None])
    assert float(cosine.abs().max()) < 0.06
    assert_close(anchors["text"].flatten(1).norm(dim=1), target["text"].norm().expand(4))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_share_of_twins(host, generator, share):
    near = [f"a {style} icon of a cat face" for style in ("neon", "flat", "3d", "blueprint", "pixel art")]
    far = [f"a neon icon of a {name}" for name in ("dog", "car", "tree", "rose", "house", "bus", "ship", "crown")]
    encoded = host.encode(near + far)
    chosen = choose_captions(
        encoded, host.encode(["cat"])[0], set(near), count=4, power=1.0, twin_share=share, generator=generator
    )
    assert len(chosen) == len(set(chosen)) == 4
    assert sum(index < len(near) for index in chosen) == round(4 * share)
