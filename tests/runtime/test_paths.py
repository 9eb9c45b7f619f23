"""The paths of a call: chosen by what the strengths look like, the same output, nothing left behind."""

import threading

import pytest
import torch
from torch import nn

from semipermeable.errors import SiteNotFiredError
from semipermeable.membrane import Membrane
from semipermeable.runtime import Binding, PathCounts
from semipermeable.runtime import plans as plans_module
from semipermeable.runtime.calls import Call
from semipermeable.runtime.folded import EffectiveWeights
from semipermeable.runtime.taps import Quick
from semipermeable.sites import find_sites

from helpers import make_tiny_unet, random_membrane

ROWS = 4
CLOSE = {"atol": 3e-5, "rtol": 1e-4}


class Caller:
    """The same call of a denoiser, with the very same text tensor each time, as a sampler makes it."""

    def __init__(self, unet, rows=ROWS, memory_format=torch.contiguous_format):
        generator = torch.Generator().manual_seed(3)
        self.unet = unet.to(memory_format=memory_format)
        self.latents = torch.randn(rows, 4, 8, 8, generator=generator).contiguous(memory_format=memory_format)
        self.states = torch.randn(rows, 5, 24, generator=generator)

    def __call__(self, time=500):
        with torch.no_grad():
            return self.unet(self.latents, torch.full((len(self.latents),), time), self.states).sample


@pytest.fixture
def call(tiny_unet):
    return Caller(tiny_unet)


@pytest.fixture(autouse=True)
def _without_gradients():
    """As in a pipeline: a call made with gradients never folds."""
    with torch.no_grad():
        yield


def table(*values):
    return torch.tensor(values, dtype=torch.float32)


def several(unet, number, rank=1):
    return [random_membrane(unet, f"c{i}", seed=i, rank=rank, every=1 + i % 3) for i in range(number)]


def drawn(unet, membranes, strengths, call, **options):
    """Output and path counts of one call through a fresh binding."""
    unconditional = options.pop("unconditional", ())
    binding = Binding(unet, membranes, **options)
    with binding.activate(strengths, unconditional=unconditional):
        out = call()
    binding.remove()
    return out, binding.counter.counts


def touched(unet):
    return [name for name, module in unet.named_modules() if "forward" in vars(module) or module._forward_hooks]


def test_an_idle_call_finds_the_modules_as_they_were(tiny_unet, call):
    seen = []

    class Watched(nn.Module):
        def forward(self, x):
            seen.append(touched(tiny_unet))
            return x

    tiny_unet.conv_in = nn.Sequential(tiny_unet.conv_in, Watched())
    binding = Binding(tiny_unet, several(tiny_unet, 3))
    assert touched(tiny_unet) == []
    with binding.activate(torch.zeros(ROWS, 3)):
        call()
    with binding.activate(torch.ones(ROWS, 3)):
        call()
    assert seen[0] == []
    assert len(seen[1]) == len(binding.membranes[0].pairs)
    assert touched(tiny_unet) == []
    assert binding.counter.counts == PathCounts(idle=1, mixed=1)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("number", [1, 5])
def test_folded_equals_mixed(tiny_unet, number, memory_format):
    call = Caller(tiny_unet, memory_format=memory_format)
    bare = call()
    membranes = several(tiny_unet, number)
    strengths = torch.linspace(0.5, 1.5, number).expand(ROWS, number).contiguous()
    mixed, counts = drawn(tiny_unet, membranes, strengths, call)
    assert counts == PathCounts(mixed=1)
    folded, counts = drawn(tiny_unet, membranes, strengths, call, fold=True)
    assert counts == PathCounts(folded=1)
    assert (mixed - bare).abs().max() > 0.01
    torch.testing.assert_close(folded, mixed, **CLOSE)


def test_folding_never_changes_a_parameter(tiny_unet, call):
    before = {name: p.detach().clone() for name, p in tiny_unet.named_parameters()}
    versions = {name: p._version for name, p in tiny_unet.named_parameters()}
    drawn(tiny_unet, several(tiny_unet, 2), torch.ones(ROWS, 2), call, fold=True)
    assert {name: p._version for name, p in tiny_unet.named_parameters()} == versions
    assert all(torch.equal(p, before[name]) for name, p in tiny_unet.named_parameters())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("rank", [1, 2])
def test_rows_with_membranes_of_their_own_equal_rows_drawn_one_set_at_a_time(tiny_unet, rank, memory_format):
    call = Caller(tiny_unet, memory_format=memory_format)
    membranes = several(tiny_unet, 12, rank)
    strengths = torch.zeros(ROWS, 12)
    for row in (0, 1, 3):
        strengths[row, 3 * row : 3 * row + 3] = torch.tensor([1.0, 0.5, -0.7])
    bare = call()
    mixed, _ = drawn(tiny_unet, membranes, strengths, call)
    assert torch.equal(mixed[2], bare[2])
    for row in (0, 1, 3):
        alone, _ = drawn(tiny_unet, membranes, strengths[row].expand(ROWS, 12).contiguous(), call)
        torch.testing.assert_close(mixed[row], alone[row], **CLOSE)
        assert (mixed[row] - bare[row]).abs().max() > 0.01


def test_a_site_with_a_wide_kernel_takes_rows_of_their_own(tiny_unet, call):
    sites = {name: site for name, site in find_sites(tiny_unet, inside=()).items() if name.endswith("conv1")}
    membranes = []
    for number in range(8):
        generator = torch.Generator().manual_seed(number)
        pairs = {
            name: (
                torch.randn(site.weight.shape[0], 1, generator=generator) * 0.1,
                torch.randn(1, *site.weight.shape[1:], generator=generator) * 0.1,
            )
            for name, site in sites.items()
        }
        membranes.append(Membrane(pairs, random_membrane(tiny_unet, f"c{number}").concept))
    strengths = torch.zeros(ROWS, 8)
    for row in range(ROWS):
        strengths[row, 2 * row : 2 * row + 2] = 1.0
    mixed, _ = drawn(tiny_unet, membranes, strengths, call)
    for row in range(ROWS):
        folded, _ = drawn(tiny_unet, membranes, strengths[row].expand(ROWS, 8).contiguous(), call, fold=True)
        torch.testing.assert_close(mixed[row], folded[row], **CLOSE)


def test_unconditional_halves_run_apart_only_when_allowed_and_worth_it(tiny_unet, call, monkeypatch):
    membranes = several(tiny_unet, 3)
    strengths = torch.cat([torch.zeros(2, 3), torch.ones(2, 3)])
    exact, counts = drawn(tiny_unet, membranes, strengths, call, fold=True)
    assert counts == PathCounts(mixed=1)
    half = {"fold": True, "unconditional": (True, True, False, False)}
    _, counts = drawn(tiny_unet, membranes, strengths, call, **half)
    assert counts == PathCounts(mixed=1)
    monkeypatch.setattr(plans_module, "SPLIT_RANK", 3)
    apart, counts = drawn(tiny_unet, membranes, strengths, call, **half)
    assert counts == PathCounts(folded=1)
    torch.testing.assert_close(apart, exact, **CLOSE)
    flipped = half | {"unconditional": (False, False, True, True)}
    other_way, counts = drawn(tiny_unet, membranes, strengths.flip(0), call, **flipped)
    assert counts == PathCounts(folded=1)
    torch.testing.assert_close(other_way, drawn(tiny_unet, membranes, strengths.flip(0), call)[0], **CLOSE)
    between = half | {"unconditional": (True, False, False, True)}
    assert drawn(tiny_unet, membranes, strengths[[0, 2, 3, 1]], call, **between)[1] == PathCounts(mixed=1)
    other_rows = half | {"unconditional": (True, False, False, False)}
    assert drawn(tiny_unet, membranes, strengths, call, **other_rows)[1] == PathCounts(mixed=1)


def test_weights_that_would_round_the_membranes_away_are_not_folded():
    call = Caller(make_tiny_unet())
    unet = call.unet.bfloat16()
    call.latents, call.states = call.latents.bfloat16(), call.states.bfloat16()
    weak = [random_membrane(unet, scale=0.003)]
    _, counts = drawn(unet, weak, torch.ones(ROWS, 1), call, fold=True)
    assert counts == PathCounts(mixed=1)
    strong = [random_membrane(unet, scale=0.5)]
    assert drawn(unet, strong, torch.ones(ROWS, 1), call, fold=True)[1] == PathCounts(folded=1)


def test_effective_weights_beyond_the_budget_are_not_made(tiny_unet, call):
    membranes = several(tiny_unet, 1)
    sites = find_sites(tiny_unet)
    needed = sum(sites[name].weight.numel() * 4 for name in membranes[0].pairs)
    for budget, expected in ((needed, PathCounts(folded=1)), (needed - 1, PathCounts(mixed=1))):
        found = drawn(tiny_unet, membranes, torch.ones(ROWS, 1), call, fold=True, device_bytes=budget)[1]
        assert found == expected


def test_device_memory_stays_within_its_budget(tiny_unet, call):
    membranes = several(tiny_unet, 6)
    sites = find_sites(tiny_unet)
    budget = 2 * sum(site.weight.numel() * 4 for site in sites.values())
    binding = Binding(tiny_unet, membranes, fold=True, device_bytes=budget)
    outs = []
    for column in [*range(6), 0]:
        with binding.activate(torch.eye(6)[column].expand(ROWS, 6).contiguous()):
            outs.append(call())
        assert sum(plan.num_bytes for plan in binding._plans.values()) <= budget
    assert len(binding._plans) < 6
    assert torch.equal(outs[0], outs[-1])


def test_a_call_with_gradients_takes_the_side_path_and_reaches_the_text(tiny_unet, call):
    binding = Binding(tiny_unet, several(tiny_unet, 2), fold=True)
    tiny_unet.requires_grad_(False)
    states = call.states.clone().requires_grad_()
    with torch.enable_grad():
        with binding.activate(torch.ones(ROWS, 2)):
            out = tiny_unet(call.latents, torch.full((ROWS,), 500), states).sample
        out.square().sum().backward()
    assert binding.counter.counts == PathCounts(mixed=1)
    with binding.activate(torch.ones(ROWS, 2)):
        torch.testing.assert_close(call(), out.detach(), **CLOSE)
    assert states.grad.abs().max() > 0


@pytest.mark.parametrize("fold", [False, True])
def test_a_site_that_never_runs_is_an_error_on_every_acting_path(tiny_unet, call, fold):
    binding = Binding(tiny_unet, several(tiny_unet, 1), fold=fold)
    attention = tiny_unet.mid_block.attentions[0].transformer_blocks[0].attn2
    former = attention.to_k
    attention.to_k = nn.Linear(former.in_features, former.out_features, bias=False)
    with pytest.raises(SiteNotFiredError, match=r"attn2\.to_k"), binding.activate(torch.ones(ROWS, 1)):
        call()
    with binding.activate(torch.zeros(ROWS, 1)):
        call()
    assert touched(tiny_unet) == []
    attention.to_k = former
    with binding.activate(torch.ones(ROWS, 1)):
        call()


@pytest.mark.parametrize("fold", [False, True])
def test_the_same_text_tensor_at_another_step_gives_what_a_fresh_binding_gives(tiny_unet, call, fold):
    membranes = several(tiny_unet, 2)
    strengths = torch.ones(ROWS, 2) if fold else table([1, 0], [0, 1], [1, 1], [0, 0])
    binding = Binding(tiny_unet, membranes, fold=fold)
    with binding.activate(strengths):
        call(900)
    with binding.activate(strengths):
        later = call(100)
    fresh = Binding(tiny_unet, membranes, fold=fold)
    with fresh.activate(strengths):
        assert torch.equal(call(100), later)
    call.states.mul_(2)
    with binding.activate(strengths):
        changed_in_place = call(100)
    assert not torch.equal(changed_in_place, later)
    with Binding(tiny_unet, membranes, fold=fold).activate(strengths):
        assert torch.equal(call(100), changed_in_place)


def test_keys_of_the_text_are_computed_once_for_all_steps(tiny_unet, call):
    binding = Binding(tiny_unet, several(tiny_unet, 1))
    layer = tiny_unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
    runs = []
    original = nn.Linear.forward
    strengths = torch.ones(ROWS, 1)

    def counted(module, x):
        runs.append(module is layer)
        return original(module, x)

    nn.Linear.forward = counted
    try:
        for time in (900, 500, 100):
            with binding.activate(strengths):
                call(time)
    finally:
        nn.Linear.forward = original
    assert sum(runs) == 1


@pytest.mark.parametrize("strengths", [[[1.0], [1.0]], [[0.0], [1.0]]])
def test_weights_and_calls_in_inference_mode_keep_nothing_for_the_next_step(strengths):
    """There a write leaves no mark by which what is kept could be told from what is stale."""
    usual = make_tiny_unet()
    with torch.inference_mode():
        made = make_tiny_unet()
    membrane, table = random_membrane(usual), torch.tensor(strengths)
    expected, _ = drawn(usual, [membrane], table, Caller(usual, 2), fold=True)
    # Weights made there, drawn with outside.
    call, binding = Caller(made, 2), Binding(made, [membrane], fold=True)
    for _ in range(2):
        with binding.activate(table):
            torch.testing.assert_close(call(), expected, **CLOSE)
    # Ordinary weights and text, called there and outside in turns.
    call, binding = Caller(usual, 2), Binding(usual, [membrane], fold=True)
    for inside in (True, True, False, True):
        with torch.inference_mode(inside), binding.activate(table):
            torch.testing.assert_close(call(), expected, **CLOSE)


def test_a_folded_call_asks_only_where_the_output_is_kept_for_the_next_step(tiny_unet, call, monkeypatch):
    visited = []
    visit = Call.visit
    monkeypatch.setattr(Call, "visit", lambda self, *args: visited.append(args[0]) or visit(self, *args))
    out, counts = drawn(tiny_unet, several(tiny_unet, 1), torch.ones(ROWS, 1), call, fold=True)
    assert counts.folded == 1
    assert {name.rpartition(".")[2] for name, m in tiny_unet.named_modules() if m in visited} == {"to_k", "to_v"}
    monkeypatch.setattr(EffectiveWeights, "quick", lambda self, site, num_rows: Quick(lambda *_: None, ()))
    slowly, _ = drawn(tiny_unet, several(tiny_unet, 1), torch.ones(ROWS, 1), call, fold=True)
    assert torch.equal(out, slowly)


@pytest.mark.parametrize("site", ["mid_block.attentions.0.proj_in", "mid_block.resnets.0.conv1"])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last, "with gaps"])
@pytest.mark.parametrize("way", ["copy_", "data"])
def test_effective_weights_follow_a_change_of_the_base_weights(tiny_unet, way, memory, site):
    call = Caller(tiny_unet, memory_format=torch.contiguous_format if memory == "with gaps" else memory)
    membranes = [random_membrane(tiny_unet, "cat", seed=1, inside=())]
    if memory == "with gaps":
        layer = find_sites(tiny_unet, inside=())[site].layer
        layer.weight = nn.Parameter(torch.cat([layer.weight, layer.weight], 1)[:, : layer.weight.shape[1]])
        assert not layer.weight.is_contiguous()
    binding = Binding(tiny_unet, membranes, fold=True)
    with binding.activate(torch.ones(ROWS, 1)):
        before = call()
    weight = find_sites(tiny_unet, inside=())[site].weight
    with torch.no_grad():
        if way == "copy_":
            weight.copy_(weight * 1.5)
        else:
            weight.data *= 1.5
    with binding.activate(torch.ones(ROWS, 1)):
        after = call()
    assert not torch.equal(before, after)
    assert torch.equal(after, drawn(tiny_unet, membranes, torch.ones(ROWS, 1), call, fold=True)[0])


@pytest.mark.parametrize("way", ["written", "replaced", "moved"])
@pytest.mark.parametrize(
    "site", ["mid_block.attentions.0.proj_in", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"]
)
def test_a_base_weight_that_changes_between_steps_is_seen_by_the_next_step(tiny_unet, call, site, way):
    """A sampler asks with the very same table: its site adds beside the new weight, the next step folds."""
    membranes, ones = [random_membrane(tiny_unet, "cat", seed=1)], torch.ones(ROWS, 1)
    binding = Binding(tiny_unet, membranes, fold=True)

    def step():
        with binding.activate(ones):
            return call()

    before = step()
    layer = find_sites(tiny_unet)[site].layer
    if way == "written":
        layer.weight.mul_(1.5)
    elif way == "replaced":
        layer.weight = nn.Parameter(layer.weight * 1.5)
    else:
        layer.weight.data = layer.weight * 1.5
    expected = drawn(tiny_unet, membranes, ones, call, fold=True)[0]
    assert not torch.allclose(before, expected, **CLOSE)
    torch.testing.assert_close(step(), expected, **CLOSE)
    assert torch.equal(step(), expected)
    assert binding.counter.counts.folded == 3


def test_a_cancelled_call_leaves_nothing_behind(tiny_unet, call):
    bare = call()
    binding = Binding(tiny_unet, several(tiny_unet, 2), fold=True)

    class Stop(nn.Module):
        def forward(self, x):
            raise KeyboardInterrupt

    last, tiny_unet.conv_out = tiny_unet.conv_out, Stop()
    with pytest.raises(KeyboardInterrupt), binding.activate(torch.ones(ROWS, 2)):
        call()
    tiny_unet.conv_out = last
    assert touched(tiny_unet) == []
    assert torch.equal(call(), bare)
    with binding.activate(torch.ones(ROWS, 2)):
        again = call()
    assert torch.equal(again, drawn(tiny_unet, binding.membranes, torch.ones(ROWS, 2), call, fold=True)[0])


@pytest.mark.parametrize("fold", [False, True])
def test_a_forward_replaced_during_a_call_stays_replaced_and_the_next_call_goes_through_it(tiny_unet, call, fold):
    """As offloading does it: it keeps the tap of the call in progress, which the next call must not set again."""
    binding = Binding(tiny_unet, several(tiny_unet, 1), fold=fold)
    module = find_sites(tiny_unet)["mid_block.attentions.0.proj_in"].module
    expected = drawn(tiny_unet, binding.membranes, torch.ones(ROWS, 1), call)[0]
    runs = []
    with binding.activate(torch.ones(ROWS, 1)):
        inner = module.forward

        def outer(*args):
            runs.append(len(runs))
            return inner(*args)

        module.forward = outer
        call()
    assert vars(module)["forward"] is outer
    for _ in range(2):
        with binding.activate(torch.ones(ROWS, 1)):
            torch.testing.assert_close(call(), expected, **CLOSE)
        assert vars(module)["forward"] is outer
    assert len(runs) == 3
    del module.forward
    with binding.activate(torch.ones(ROWS, 1)):
        torch.testing.assert_close(call(), expected, **CLOSE)
    assert touched(tiny_unet) == []


def test_threads_with_different_paths_share_a_denoiser(tiny_unet, call):
    membranes = several(tiny_unet, 3)
    binding = Binding(tiny_unet, membranes, fold=True)
    other = Binding(tiny_unet, membranes)
    tables = [torch.ones(ROWS, 3), table([1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]), torch.zeros(ROWS, 3), None]
    owners = [binding, other, binding, None]
    expected = [
        drawn(tiny_unet, membranes, t, call, fold=o is binding)[0] if o else call()
        for t, o in zip(tables, owners, strict=True)
    ]
    found = [[] for _ in tables]

    @torch.no_grad()
    def work(index):
        mine = Caller(make_tiny_unet())
        mine.unet = tiny_unet
        for _ in range(6):
            if owners[index] is None:
                found[index].append(mine())
            else:
                with owners[index].activate(tables[index]):
                    found[index].append(mine())

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(tables))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for outs, wanted in zip(found, expected, strict=True):
        assert len(outs) == 6
        for out in outs:
            assert torch.equal(out, wanted)
    assert touched(tiny_unet) == []
