"""Concepts of the bundled model, whatever it draws, and pictures of a few steps."""

import pytest
import torch

from semipermeable import zoo
from semipermeable.training import enrich


@pytest.fixture(scope="session")
def spec():
    """What the bundled model was taught."""
    return zoo.spec("emoji")


@pytest.fixture(scope="session")
def concept(spec):
    """The bundled model's first object, completed from its spec."""
    return enrich(spec.object_names[0], spec)


@pytest.fixture(scope="session")
def style(spec):
    """The bundled model's last style, completed from its spec."""
    return enrich(spec.styles[-1], spec)


@pytest.fixture(scope="session")
def prompts(spec, concept):
    """One prompt about the concept, one about something else."""
    others = [thing for thing in spec.objects if thing.group != spec.objects[0].group]
    return [spec.caption(concept.name, spec.styles[0]), spec.caption(others[0].name, spec.styles[0])]


@pytest.fixture(scope="session")
def drawn():
    """Draw prompts in three steps: `drawn(pipe_or_erased, prompts)` gives (prompts, 3, height, width)."""

    def draw(call, prompts, **options):
        settings = {"num_inference_steps": 3, "guidance_scale": 4.0, "output_type": "pt"} | options
        noise = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
        return call(list(prompts), generator=noise, **settings).images

    return draw
