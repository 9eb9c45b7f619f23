"""What every eraser of the tree promises, whatever its method."""

import json

import pytest
import torch

from evaluation.erasers.quick import CUT, quick
from semipermeable.evaluation.erasers import Eraser, Erasure
from semipermeable.evaluation.erasers.registry import _in_tree

IN_TREE = list(_in_tree())
PARTLY_OPEN = {"spm-paper", "spm-reference"}
"""The paper's gate is nowhere quite closed."""


def state_of(pipe):
    """Everything of the pipeline that an eraser could leave changed: objects, values, flags, hooks, attributes."""
    unet = pipe.unet
    parameters = dict(unet.named_parameters())
    return {
        "objects": [id(unet), *(id(p) for p in parameters.values())],
        "flags": [(p.requires_grad, p.grad is None) for p in parameters.values()],
        "names": list(unet.state_dict()),
        "hooks": sum(len(module._forward_hooks) for module in unet.modules()),
        "modes": [module.training for module in unet.modules()],
        "attributes": sorted(set(vars(pipe)) - PRIVATE_OF_CALLS),
    }


PRIVATE_OF_CALLS = {
    "_guidance_scale",
    "_guidance_rescale",
    "_clip_skip",
    "_cross_attention_kwargs",
    "_interrupt",
    "_num_timesteps",
}
"""What a diffusers pipeline remembers of its last call, erased or not."""


@pytest.mark.parametrize("name", IN_TREE)
def test_the_pipeline_comes_back_bit_for_bit(name, pipe, concept, prompts, drawn):
    before, values = state_of(pipe), {key: value.clone() for key, value in pipe.unet.state_dict().items()}
    bare = drawn(pipe, prompts)
    method = quick(name)
    erasure = method.prepare(pipe, [concept], seed=0)
    assert isinstance(method, Eraser)
    assert isinstance(erasure, Erasure)
    assert state_of(pipe) == before
    with erasure.applied(pipe) as erased:
        changed = drawn(erased, prompts)
    assert state_of(pipe) == before
    assert all(torch.equal(value, values[key]) for key, value in pipe.unet.state_dict().items())
    assert torch.equal(drawn(pipe, prompts), bare)
    assert torch.equal(changed[0], bare[0]) == (name == "noop")
    if method.gated and name not in PARTLY_OPEN:
        assert torch.equal(changed[1], bare[1])
    told = json.loads(json.dumps(dict(erasure.config)))
    assert told["eraser"] == method.name
    assert told["concepts"][0]["name"] == concept.name
    assert (erasure.stored_bytes == 0) == (name == "noop")


def test_an_error_while_erased_gives_the_pipeline_back_too(pipe, concept):
    before = state_of(pipe)
    for name in ("uce", "sld", "spm", "spm-reference"):
        with (
            pytest.raises(ValueError, match="divisible by 8"),
            quick(name).prepare(pipe, [concept], seed=0).applied(pipe) as erased,
        ):
            erased(["a tree"], height=7, width=7)
        assert state_of(pipe) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CUT))
def test_the_same_seed_gives_the_same_pictures(name, pipe, concept, style, prompts, drawn):
    pictures = []
    for _ in range(2):
        with quick(name).prepare(pipe, [concept, style], seed=1).applied(pipe) as erased:
            pictures.append(drawn(erased, prompts[:1]))
    assert torch.equal(*pictures)


def test_the_gate_opens_on_the_test_prompts_as_these_tests_assume(pipe, concept, prompts):
    from semipermeable.evaluation.erasers.gates import fit_gates
    from semipermeable.evaluation.erasers.subjects import subjects_of

    gate = fit_gates(pipe, subjects_of(pipe, [concept]), 0)
    assert [len(found) for found in gate.opened(pipe, prompts)] == [1, 0]
