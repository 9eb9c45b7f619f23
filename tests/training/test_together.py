import dataclasses

import pytest
import torch

from semipermeable.concept import Concept
from semipermeable.errors import ConfigError, DivergenceError
from semipermeable.training import Workshop, train
from semipermeable.training.together import SharedAnchors, Task, shared_captions, train_together

from training_helpers import CAPTIONS, CONCEPT, quick

DOG = Task(
    Concept("dog", surrogate="animal"),
    dataclasses.replace(
        CAPTIONS,
        names=("dog",),
        targets=("a neon icon of a dog", "a flat icon of a dog"),
        spans=("dog", "dog"),
        anchors=("a neon icon of a cat", "a flat icon of a car", "a flat icon of a cat face", "a tree"),
    ),
)
TASKS = (Task(CONCEPT, CAPTIONS), DOG)


def _finish(steps):
    figures = []
    while True:
        try:
            figures.append(next(steps))
        except StopIteration as end:
            return figures, end.value


def _delta(pairs):
    return torch.cat([(u @ v.flatten(1)).flatten() for u, v in pairs.values()])


@pytest.mark.parametrize("rank", [1, 2])
def test_membranes_trained_side_by_side_are_those_trained_alone(host, rank):
    """Within 1 % of their own size: rows are summed in another order, and AdamW divides by small gradients."""
    config = quick(num_steps=5, rank=rank)
    figures, together = _finish(train_together(Workshop(host), TASKS, config, seed=3))
    for index, task in enumerate(TASKS):
        alone, expected = _finish(train(host, task.concept, task.captions, config, seed=3))
        assert [step[index].erasing_loss for step in figures] == pytest.approx(
            [step.erasing_loss for step in alone], rel=1e-2
        )
        whole, own = _delta(expected.pairs), _delta(together[index].pairs)
        assert float((own - whole).norm()) < 0.01 * float(whole.norm())
    assert float((_delta(together[0].pairs) - _delta(together[1].pairs)).norm()) > 0.1 * float(whole.norm())


def test_the_base_model_is_left_as_it_was(host):
    before = {name: value.clone() for name, value in host.denoiser.state_dict().items()}
    steps = train_together(Workshop(host), TASKS, quick(), seed=0)
    next(steps)
    steps.close()
    assert all(torch.equal(before[name], value) for name, value in host.denoiser.state_dict().items())
    assert not any(module._forward_hooks for module in host.denoiser.modules())
    assert all(parameter.requires_grad for parameter in host.denoiser.parameters())


def test_shared_captions_are_about_no_concept():
    assert shared_captions(TASKS) == ["a flat icon of a car", "a flat icon of a cat face", "a tree"]


def test_joint_anchors_bound_what_all_membranes_do_together(host):
    config = quick(num_steps=40, learning_rate=1e-2, batch_size=4, num_anchors=4)
    held, _ = _finish(
        train_together(Workshop(host), TASKS, dataclasses.replace(config, anchor_weight=100.0), seed=0, joint=True)
    )
    free, _ = _finish(
        train_together(Workshop(host), TASKS, dataclasses.replace(config, anchor_weight=0.0), seed=0, joint=True)
    )
    assert held[-1][0].anchoring_loss == held[-1][1].anchoring_loss
    assert held[-1][0].anchoring_loss < 0.5 * free[-1][0].anchoring_loss


def test_shared_anchor_rows_stand_where_the_base_model_was_asked(host):
    anchors = SharedAnchors(Workshop(host), TASKS, quick(num_anchors=5), 0)
    first, again, other = anchors.batch(1), anchors.batch(1), anchors.batch(2)
    assert (len(first.latents), first.num_targets) == (5, 0)
    assert torch.equal(first.latents, again.latents)
    assert not torch.equal(first.latents, other.latents)
    with torch.no_grad():
        expected = host.predict(first.latents, first.timesteps, first.condition)
    torch.testing.assert_close(first.goal, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("changed", "joint", "words"),
    [
        ({"num_steps": 0}, False, "one by one"),
        ({"checkpoint": "run.safetensors"}, False, "checkpoint belongs to the run of a single membrane; leave"),
        ({"preview": print}, False, "preview belongs to the run of a single membrane"),
        ({"anchors": "gaussian"}, True, "joint training needs anchors that are captions"),
        ({"num_anchors": 0}, True, "num_anchors above 0"),
        ({"reuse_trajectories": False}, True, "reuse_trajectories=True"),
    ],
)
def test_what_belongs_to_a_single_run_is_refused(host, changed, joint, words):
    with pytest.raises(ConfigError, match=words):
        next(train_together(Workshop(host), TASKS, quick(**changed), seed=0, joint=joint))


def test_divergence_names_the_membrane(host):
    config = quick(num_steps=40, learning_rate=1e3, divergence_factor=2.0, warmup_steps=0)
    with pytest.raises(DivergenceError, match=r"training of '(cat|dog)' diverged at step"):
        _finish(train_together(Workshop(host), TASKS, config, seed=0))
