"""What `fold` refuses, and the order in which folds are undone."""

import pytest
import torch

import semipermeable as spm
from semipermeable.errors import AttachError, SiteError

from helpers import make_tiny_unet, random_membrane


@pytest.fixture
def tiny(pipe):
    """The bundled pipeline with a small random denoiser of its own."""
    pipe.unet = make_tiny_unet()
    return pipe


def weights(pipe):
    return {name: weight.clone() for name, weight in pipe.unet.state_dict().items()}


def same(pipe, before):
    return all(torch.equal(weight.float(), before[name].float()) for name, weight in pipe.unet.state_dict().items())


def test_weights_of_one_byte_are_refused(tiny):
    """Layerwise casting stores plain weights in fp8, which keeps a fifth of a membrane."""
    membrane = random_membrane(tiny.unet, scale=0.03)
    tiny.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    before = weights(tiny)
    with pytest.raises(SiteError, match=r"quantised weight \(\w+, Parameter, torch\.float8_e4m3fn\).* or use attach"):
        spm.fold(tiny, membrane)
    assert same(tiny, before)


def test_weights_made_in_inference_mode_are_refused(pipe):
    with torch.inference_mode():
        pipe.unet = make_tiny_unet()
    with pytest.raises(SiteError, match=r"made in torch\.inference_mode\(\).*Load the model outside of it"):
        spm.fold(pipe, random_membrane(pipe.unet))


def test_folds_are_undone_the_last_one_first(tiny):
    before = weights(tiny)
    first = spm.fold(tiny, random_membrane(tiny.unet))
    one = weights(tiny)
    second = spm.fold(tiny, random_membrane(tiny.unet, "dog", seed=1, every=2))
    two = weights(tiny)
    with pytest.raises(AttachError, match=r"another fold came later.*the last fold is the first to unfold"):
        first.unfold()
    assert same(tiny, two)
    second.unfold()
    assert same(tiny, one)
    first.unfold()
    assert same(tiny, before)
    first.unfold()
    assert not any(vars(parameter) for parameter in tiny.unet.parameters())


def test_a_fold_moves_with_its_model_and_a_replaced_weight_is_noticed(tiny):
    before = weights(tiny)
    membrane = random_membrane(tiny.unet)
    folded = spm.fold(tiny, membrane)
    tiny.unet.to(torch.float64).to(torch.float32)
    site = tiny.unet.get_submodule(next(iter(membrane.pairs)))
    own = site.weight
    site.weight = torch.nn.Parameter(own.detach().clone())
    with pytest.raises(AttachError, match="offloading replaced it"):
        folded.unfold()
    site.weight = own
    folded.unfold()
    assert same(tiny, before)
