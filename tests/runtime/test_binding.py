"""Laws of bound membranes on a UNet: exact where γ = 0, an exact sum elsewhere, nothing left behind."""

import threading

import pytest
import torch
from torch import nn

from semipermeable.concept import Concept
from semipermeable.errors import AttachError, SiteError, SiteNotFiredError
from semipermeable.membrane import Membrane
from semipermeable.rank1 import folded_weight
from semipermeable.runtime import Binding, TrainableBinding
from semipermeable.sites import find_sites

from helpers import random_membrane


@pytest.fixture
def call(tiny_unet, generator):
    latents = torch.randn(4, 4, 8, 8, generator=generator)
    states = torch.randn(4, 5, 24, generator=generator)

    @torch.no_grad()
    def run(unet=tiny_unet):
        return unet(latents, torch.tensor([1, 200, 500, 900]), states).sample

    return run


def rows(*values):
    return torch.tensor(values, dtype=torch.float32)


def test_rows_with_zero_strength_are_bit_identical_and_others_change(tiny_unet, call):
    bare = call()
    binding = Binding(tiny_unet, [random_membrane(tiny_unet)])
    with binding.activate(rows([0.0], [1.0], [0.0], [0.5])):
        out = call()
    assert torch.equal(out[[0, 2]], bare[[0, 2]])
    assert (out[[1, 3]] - bare[[1, 3]]).abs().amax((1, 2, 3)).min() > 1e-3


def test_untouched_rows_are_bit_identical_in_channels_last_too(tiny_unet, generator):
    tiny_unet.to(memory_format=torch.channels_last)
    latents = torch.randn(16, 4, 8, 8, generator=generator).contiguous(memory_format=torch.channels_last)
    states, timesteps = torch.randn(16, 5, 24, generator=generator), torch.full((16,), 500)
    binding = Binding(tiny_unet, [random_membrane(tiny_unet)])
    open_rows = torch.zeros(16, 1)
    open_rows[::3] = 1
    with torch.no_grad():
        bare = tiny_unet(latents, timesteps, states).sample
        with binding.activate(open_rows):
            out = tiny_unet(latents, timesteps, states).sample
    assert [torch.equal(a, b) for a, b in zip(out, bare, strict=True)] == (open_rows[:, 0] == 0).tolist()


def test_all_zero_strength_and_no_activation_are_the_base_models_own_code(tiny_unet, call):
    bare = call()
    binding = Binding(tiny_unet, [random_membrane(tiny_unet)])
    assert torch.equal(call(), bare)
    with binding.activate(torch.zeros(4, 1)):
        assert torch.equal(call(), bare)


def test_removal_is_bit_exact_and_leaves_no_hook(tiny_unet, call):
    keys, bare = list(tiny_unet.state_dict()), call()
    binding = Binding(tiny_unet, [random_membrane(tiny_unet)])
    with binding.activate(torch.ones(4, 1)):
        assert not torch.equal(call(), bare)
    assert list(tiny_unet.state_dict()) == keys
    binding.remove()
    assert torch.equal(call(), bare)
    assert not any(m._forward_hooks for m in tiny_unet.modules())


def test_side_path_equals_folded_weights_for_a_sum_of_membranes(tiny_unet, call):
    membranes = [random_membrane(tiny_unet, seed=1), random_membrane(tiny_unet, "dog", seed=2, rank=2, every=3)]
    binding = Binding(tiny_unet, membranes)
    with binding.activate(rows([0.7, 1.5]).expand(4, 2)):
        out = call()
    binding.remove()
    sites = find_sites(tiny_unet)
    with torch.no_grad():
        for membrane, gamma in zip(membranes, (0.7, 1.5), strict=True):
            for name, (u, v) in membrane.pairs.items():
                sites[name].weight.copy_(folded_weight(sites[name].weight, u, v, gamma))
    torch.testing.assert_close(out, call(), atol=2e-5, rtol=1e-4)


def test_the_order_of_membranes_does_not_matter(tiny_unet, call):
    a, b = random_membrane(tiny_unet, seed=1), random_membrane(tiny_unet, "dog", seed=2, every=2)
    outs = []
    for order, gamma in (([a, b], rows([1.0, 0.5])), ([b, a], rows([0.5, 1.0]))):
        binding = Binding(tiny_unet, order)
        with binding.activate(gamma.expand(4, 2)):
            outs.append(call())
        binding.remove()
    torch.testing.assert_close(outs[0], outs[1], atol=2e-6, rtol=1e-5)


def test_each_row_gets_its_own_membranes_only(tiny_unet, call):
    a, b = random_membrane(tiny_unet, seed=1), random_membrane(tiny_unet, "dog", seed=2)
    binding = Binding(tiny_unet, [a, b])
    with binding.activate(rows([1, 0], [0, 1], [0, 0], [1, 1])):
        mixed = call()
    for row, gamma in enumerate(([1, 0], [0, 1], [0, 0], [1, 1])):
        with binding.activate(rows(gamma).expand(4, 2)):
            torch.testing.assert_close(mixed[row], call()[row], atol=2e-6, rtol=1e-5)


def test_a_site_that_never_runs_is_an_error(tiny_unet, call):
    binding = Binding(tiny_unet, [random_membrane(tiny_unet)])
    attention = tiny_unet.mid_block.attentions[0].transformer_blocks[0].attn2
    attention.to_k = nn.Linear(attention.to_k.in_features, attention.to_k.out_features, bias=False)
    with (
        pytest.raises(SiteNotFiredError, match=r"1 of \d+ sites never ran, first 'mid_block.*attn2\.to_k'"),
        binding.activate(torch.ones(4, 1)),
    ):
        call()
    call()  # the failed call left nothing behind


def test_an_error_about_a_site_that_never_ran_names_what_leaves_layers_out(tiny_unet):
    """Caches and skipped layers are as common a cause as replaced ones."""
    binding = Binding(tiny_unet, [random_membrane(tiny_unet)])
    with (
        pytest.raises(SiteNotFiredError, match=r"`disable_cache\(\)`, pass no `skip_guidance_layers`.* or compiled"),
        binding.activate(torch.ones(4, 1)),
    ):
        pass


@pytest.mark.parametrize("own", [False, True])
def test_a_site_that_keeps_its_inputs_dtype_under_autocast(own, generator):
    """As 4-bit layers of bitsandbytes do; autocast itself multiplies in bf16."""

    class Kept(nn.Linear):
        def forward(self, x):
            return super().forward(x).to(x.dtype)

    net = nn.Sequential(Kept(8, 8, bias=False))
    pairs = [{"0": (torch.randn(8, 1, generator=generator), torch.randn(1, 8, generator=generator))} for _ in range(5)]
    binding = Binding(net, [Membrane(pair, Concept(f"c{i}")) for i, pair in enumerate(pairs)])
    x = torch.randn(5, 4, 8, generator=generator)
    table = torch.eye(5) if own else torch.ones(5, 5)
    with torch.no_grad():
        with binding.activate(table):
            exact = net(x)
        with torch.autocast("cpu", torch.bfloat16), binding.activate(table):
            out = net(x)
        assert not torch.allclose(net(x), exact, atol=0.5)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, exact, atol=0.2, rtol=0.05)


def test_an_error_inside_the_call_is_passed_on_and_cleared(tiny_unet, call):
    bare = call()
    binding = Binding(tiny_unet, [random_membrane(tiny_unet)])
    with pytest.raises(ZeroDivisionError), binding.activate(torch.ones(4, 1)):
        raise ZeroDivisionError
    assert torch.equal(call(), bare)


def test_another_thread_stays_bare(tiny_unet, call):
    bare, seen = call(), []
    binding = Binding(tiny_unet, [random_membrane(tiny_unet)])
    with binding.activate(torch.ones(4, 1)):
        thread = threading.Thread(target=lambda: seen.append(call()))
        thread.start()
        thread.join()
        assert not torch.equal(call(), bare)
    assert torch.equal(seen[0], bare)


def test_removal_waits_for_a_call_in_progress(tiny_unet, call):
    binding = Binding(tiny_unet, [random_membrane(tiny_unet)])
    with binding.activate(torch.ones(4, 1)):
        binding.remove()
        call()  # all sites still fire, or this would raise at the end of the block
    assert not any(m._forward_hooks for m in tiny_unet.modules())
    with pytest.raises(AttachError, match="detached"), binding.activate(torch.ones(4, 1)):
        pass


def test_a_membrane_that_does_not_fit_leaves_no_hook(tiny_unet):
    from semipermeable.membrane import Membrane

    good = random_membrane(tiny_unet)
    bad = Membrane({"nowhere": (torch.ones(2, 1), torch.ones(1, 2))}, good.concept)
    with pytest.raises(SiteError, match="nowhere"):
        Binding(tiny_unet, [good, bad])
    assert not any(m._forward_hooks for m in tiny_unet.modules())


def test_a_fresh_trainable_pair_changes_nothing_and_learns(tiny_unet, generator):
    latents, states = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, 24, generator=generator)
    timesteps = torch.tensor([3, 700])
    tiny_unet.requires_grad_(False)
    bare = tiny_unet(latents, timesteps, states).sample
    binding = TrainableBinding(find_sites(tiny_unet), rank=2, generator=generator, device=torch.device("cpu"))
    binding.gamma = 1.0
    out = tiny_unet(latents, timesteps, states).sample
    torch.testing.assert_close(out, bare, atol=0, rtol=0)
    out.square().mean().backward()
    gradients = [u.grad for u, _ in binding.pairs().values()]
    assert all(g is not None and g.abs().sum() > 0 for g in gradients)
    binding.remove()
    assert not any(m._forward_hooks for m in tiny_unet.modules())


def test_gradients_under_checkpointing_equal_those_without(tiny_unet, generator):
    latents, states = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, 24, generator=generator)
    tiny_unet.requires_grad_(False)
    binding = TrainableBinding(find_sites(tiny_unet), generator=generator, device=torch.device("cpu"))
    with torch.no_grad():
        for parameter in binding.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    binding.gamma = torch.tensor([1.0, 0.0])
    found = []
    for checkpointing in (False, True):
        tiny_unet.train()
        if checkpointing:
            tiny_unet.enable_gradient_checkpointing()
        tiny_unet(latents, torch.tensor([3, 700]), states).sample.square().mean().backward()
        found.append([p.grad.clone() for p in binding.parameters()])
        for parameter in binding.parameters():
            parameter.grad = None
    for without, with_ in zip(*found, strict=True):
        torch.testing.assert_close(with_, without)
    assert max(g.abs().max() for g in found[0]) > 0
