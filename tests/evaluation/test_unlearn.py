"""The technique for eval-unlearn: found by its registry, and drawing what the eraser draws."""

import numpy as np
import pytest
import torch

from semipermeable import zoo
from semipermeable.errors import ConfigError, UnknownNameError
from semipermeable.evaluation.erasers import eraser
from semipermeable.evaluation.unlearn import Technique
from semipermeable.training import enrich


def test_the_registry_finds_it():
    registry = pytest.importorskip("eval_unlearn.registry")
    from eval_unlearn.registry.entrypoints import load_entrypoints

    load_entrypoints()
    assert registry.get_technique("semipermeable") is Technique


def test_it_draws_what_the_eraser_draws(pipe):
    spec = zoo.spec("emoji")
    concept = enrich(spec.object_names[0], spec)
    prompts = [spec.caption(name, spec.styles[0]) for name in spec.object_names[:2]]
    made = Technique(erase_concept=concept.name, eraser="uce", device="cpu", num_inference_steps=2, guidance_scale=4.0)
    images = made.generate(prompts, seed=5)
    assert len(images) == len(prompts)
    with eraser("uce").prepare(pipe, [concept], seed=0).applied(pipe) as erased:
        noise = [torch.Generator().manual_seed(6)]
        wanted = erased(prompts[1:], generator=noise, num_inference_steps=2, guidance_scale=4.0).images[0]
    assert np.array_equal(np.asarray(images[1]), np.asarray(wanted))
    assert made.generate(prompts[:1], num_inference_steps=1)[0].size == images[0].size


def test_what_cannot_be_made_is_refused_before_the_model_is_loaded():
    with pytest.raises(ConfigError, match="must name a concept, found ' , '"):
        Technique(erase_concept=" , ", model_id="nowhere")
    with pytest.raises(UnknownNameError, match="unknown eraser 'ucee'"):
        Technique(erase_concept="cat", eraser="ucee", model_id="nowhere")
