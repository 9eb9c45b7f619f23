"""Membranes in a compiled denoiser: the same pictures, the gate, no bare drawing, and what is compiled anew.

`backend="eager"` runs the compiler's front end, which decides what is traced and when code is compiled anew; the slow
test runs the code generator too.
"""

import pytest
import torch
from torch._dynamo.utils import counters

import semipermeable as spm
from hosts.family_laws import PROMPTS
from hosts.tiny_settings import add_lora, draw, make_pipe, membranes_for
from semipermeable.errors import AttachError, SiteNotFiredError
from semipermeable.hosts import host_for
from semipermeable.runtime import twin as twins

CLOSE = {"atol": 1e-4, "rtol": 1e-3}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def made(tokenizer):
    """Makes a fresh pipeline of a family and membranes for it."""

    def make(family, number=1):
        pipe = make_pipe(family, tokenizer)
        return pipe, membranes_for(pipe, number)

    return make


def compile_(pipe, how, backend="eager", **options):
    """Compile as users do: in place, wrapped, or block by block."""
    name = host_for(pipe).denoiser_names[0]
    part = getattr(pipe, name)
    if how == "in place":
        part.compile(backend=backend, **options)
    elif how == "wrapped":
        setattr(pipe, name, torch.compile(part, backend=backend, **options))
    else:
        part.compile_repeated_blocks(**{"backend": backend, "fullgraph": True} | options)


def num_graphs():
    return counters["stats"]["unique_graphs"]


HOWS = ("in place", "wrapped", "blocks")


def agrees(pipe, membranes, how, backend="eager", close=CLOSE):
    """A compiled pipeline draws with membranes what the eager one draws."""
    host = host_for(pipe)
    with spm.attach(pipe, membranes[0]):
        eager = draw(pipe)
    hashed = host.base_hash()
    compile_(pipe, how, backend)
    assert host_for(pipe).base_hash() == hashed
    held = host_for(pipe).denoisers
    bare = draw(pipe)
    with spm.attach(pipe, membranes[0]) as guard:
        drawn = draw(pipe)
        torch.testing.assert_close(drawn, eager, **close)
        torch.testing.assert_close(drawn[1], bare[1], **close)
        assert float((drawn[0] - bare[0]).abs().max()) > 20 * float((drawn - eager).abs().max()) + 1e-3
        assert {row.prompt: row.gamma for row in guard.trace} == {PROMPTS[0]: 1.0, PROMPTS[1]: 0.0}
        # Where nothing acts in the whole call, the denoiser's own compiled code runs.
        assert torch.equal(draw(pipe, PROMPTS[1:]), draw_alone(pipe, guard))
        assert guard.paths.folded == 0
        assert guard.paths.mixed
        assert guard.paths.idle
    assert host_for(pipe).denoisers == held
    assert torch.equal(draw(pipe), bare)


def draw_alone(pipe, guard):
    """The second prompt, drawn bare by a sibling that holds the same compiled denoiser."""
    originals = guard._originals
    sibling = type(pipe)(**pipe.components | originals, **flags(pipe))
    sibling.set_progress_bar_config(disable=True)
    for name, value in vars(pipe).items():
        if name.startswith("default_") or name == "prompt_template_encode_start_idx":
            setattr(sibling, name, value)
    return draw(sibling, PROMPTS[1:])


def flags(pipe):
    return {"requires_safety_checker": False} if "safety_checker" in pipe.components else {}


WHOLE = [pytest.param(family, how, marks=pytest.mark.slow) for family in ("unet", "sdxl", "sd3") for how in HOWS[:2]]


OTHERS = [
    pytest.param(family, "in place", marks=pytest.mark.slow)
    for family in ("pixart", "wan", "qwen-image", "sana", "z-image")
]


@pytest.mark.parametrize(
    ("family", "how"), [("unet", "blocks"), ("sdxl", "blocks"), *(("flux", how) for how in HOWS), *OTHERS, *WHOLE]
)
def test_a_compiled_denoiser_draws_what_the_eager_one_draws(made, family, how):
    pipe, membranes = made(family)
    agrees(pipe, membranes, how)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["unet", "flux"])
def test_with_the_code_generator(made, family):
    pipe, membranes = made(family)
    agrees(pipe, membranes, "blocks", "inductor", {"atol": 1e-3, "rtol": 1e-2})


ON_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.slow
@pytest.mark.parametrize(("device", "how"), [("cpu", "blocks"), pytest.param("cuda", "in place", marks=ON_CUDA)])
def test_replayed_graphs_read_other_strengths_and_other_membranes(made, device, how):
    """On CUDA the mode records graphs and replays them; what acts must be read at each replay, not at the recording.

    There the denoiser is compiled whole: torch refuses to replay blocks compiled one by one, since each overwrites what
    the next one reads (pytorch issue 152887), with or without membranes. A CPU records nothing; blocks compile sooner.
    """
    pipe, membranes = made("unet", 3)
    pipe.to(device)

    def pictures():
        chosen = [(membranes[:1], 1.0), (membranes[:1], 0.4), (membranes[1:], 1.0), (membranes, 0.7)]
        for some, strength in chosen:
            with spm.attach(pipe, some, "open", strength=strength):
                yield draw(pipe).cpu()
        yield draw(pipe).cpu()

    eager = list(pictures())
    assert not any(torch.equal(a, b) for i, a in enumerate(eager) for b in eager[:i])
    compile_(pipe, how, "inductor", mode="reduce-overhead", fullgraph=True)
    for _ in range(3):  # warmed up, recorded, replayed
        for found, wanted in zip(pictures(), eager, strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-2)


def test_what_the_compiled_code_takes_for_fixed_stays_where_it_is(made, monkeypatch):
    """Dynamo marks inputs that hang on modules as static; a CUDA graph is recorded anew when one of them moves."""
    pipe, membranes = made("unet", 3)
    inputs, loaded = [], []

    def backend(graph, tensors):
        inputs.extend(x for x in tensors if getattr(x, "_dynamo_static_input_type", None))
        return graph.forward

    def load(self, plan, own=twins.Twin._load):
        own(self, plan)
        read = {name: (seat.u, seat.v) for name, seat in self._seats.items()}
        loaded.append({name: (u.data_ptr(), v.data_ptr()) for name, (u, v) in read.items()})
        loaded[-1]["gamma"] = self._board.gamma.data_ptr()

    monkeypatch.setattr(twins.Twin, "_load", load)
    pipe.unet.compile_repeated_blocks(backend=backend, fullgraph=True)
    with spm.attach(pipe, membranes[0], "open") as guard:
        one = draw(pipe)
        guard.add(membranes[1])
        two = draw(pipe)
        draw(pipe, PROMPTS[:1])
        guard.remove("cat")
        draw(pipe)
    first, second, alone, third = loaded
    assert first == second == third
    assert {**alone, "gamma": 0} == {**first, "gamma": 0}, "another number of rows has strengths of another shape"
    assert first["gamma"] in {x.data_ptr() for x in inputs}, "the compiler takes what acts for fixed"
    assert not torch.equal(one, two)


class Recorder:
    """A compiler's backend that treats memory as CUDA graphs do, on any device.

    A graph is recorded at fixed addresses: what hangs on modules is read where it lies, other inputs are copied to
    where the recording had them, and outputs overwrite those of the replay before. It records anew where the shapes or
    one of the fixed addresses differ.
    """

    def __init__(self):
        self.recordings = 0

    def __call__(self, graph, example):
        is_copied = [isinstance(x, torch.Tensor) and not getattr(x, "_dynamo_static_input_type", None) for x in example]
        recorded = {}

        def key_of(x, copied):
            return x.shape if copied else x.data_ptr() if isinstance(x, torch.Tensor) else x

        def replay(*inputs):
            key = tuple(map(key_of, inputs, is_copied))
            if key not in recorded:
                self.recordings += 1
                memory = [x.clone() if copied else x for x, copied in zip(inputs, is_copied, strict=True)]
                recorded[key] = memory, [x.clone() for x in graph.forward(*memory)]
                return recorded[key][1]
            memory, outputs = recorded[key]
            for held, new, copied in zip(memory, inputs, is_copied, strict=True):
                if copied:
                    held.copy_(new)
            for held, new in zip(outputs, graph.forward(*memory), strict=True):
                held.copy_(new)
            return outputs

        return replay


@pytest.mark.parametrize("family", ["unet", pytest.param("flux", marks=pytest.mark.slow)])
def test_a_recording_is_replayed_with_other_strengths_and_other_membranes(made, family):
    """What acts lies where the recording reads it, and nobody keeps an output that the next replay overwrites."""
    pipe, membranes = made(family, 3)

    def pictures():
        with spm.attach(pipe, membranes[:2], strength={"tree": 0.4}) as guard:
            yield draw(pipe)
            yield draw(pipe, PROMPTS[::-1])
            yield draw(pipe, [PROMPTS[0], "a tree"])
            guard.add(membranes[2])
            guard.remove("cat")
            yield draw(pipe, ["c2", "a tree"])
        yield draw(pipe)

    eager = list(pictures())
    assert not any(torch.equal(a, b) for i, a in enumerate(eager) for b in eager[:i])
    recorder = Recorder()
    compile_(pipe, "in place", recorder, fullgraph=True)
    for found, wanted in zip(pictures(), eager, strict=True):
        torch.testing.assert_close(found, wanted, **CLOSE)
    assert recorder.recordings == 2, "the denoiser's own code and the twin's, each once"
    with spm.attach(pipe, membranes[0], strength=0.4):
        weaker = draw(pipe)
    assert recorder.recordings == 3, "another attachment has another twin"
    with spm.attach(pipe, membranes[0]):
        assert float((weaker - draw(pipe)).abs().max()) > 1e-3


def test_the_twin_may_be_compiled_first(made):
    pipe, membranes = made("unet")
    bare = draw(pipe)
    compile_(pipe, "blocks")
    with spm.attach(pipe, membranes[0]):
        acted = draw(pipe)
    assert torch.equal(draw(pipe), bare)
    assert float((acted[0] - bare[0]).abs().max()) > 0.01


@pytest.mark.parametrize(
    ("family", "how"),
    [
        ("unet", "blocks"),
        *(pytest.param("unet", how, marks=pytest.mark.slow) for how in HOWS[:2]),
        ("flux", "in place"),
    ],
)
def test_other_strengths_and_other_membranes_compile_nothing_anew(made, family, how):
    pipe, membranes = made(family, 12)
    compile_(pipe, how)
    draw(pipe)
    with spm.attach(pipe, membranes[0]):
        first = draw(pipe)
    seen = num_graphs()
    with torch._dynamo.config.patch(error_on_recompile=True):
        with spm.attach(pipe, membranes[0], 0.5):
            half = draw(pipe)
        with spm.attach(pipe, membranes[:2], "open", strength={"cat": 0.3}) as guard:
            both = draw(pipe)
            for membrane in membranes[2:8]:
                guard.add(membrane)
            eight = draw(pipe)
            guard.remove("cat")
            seven = draw(pipe)
    pictures = [first, half, both, eight, seven]
    assert not any(torch.equal(a, b) for i, a in enumerate(pictures) for b in pictures[:i])
    assert num_graphs() == seen
    # The ninth pair does not fit: compiled once more, with room for 32.
    with spm.attach(pipe, membranes, "open"):
        twelve = draw(pipe)
        grown = num_graphs()
        assert seen < grown <= 2 * seen
    with torch._dynamo.config.patch(error_on_recompile=True), spm.attach(pipe, membranes, "open"):
        assert torch.equal(draw(pipe), twelve)
    assert num_graphs() == grown


def test_a_sum_of_membranes_of_different_rank_and_sites(made):
    pipe, membranes = made("unet", 2)
    part = type(membranes[1])(dict(list(membranes[1].pairs.items())[::3]), membranes[1].concept)
    with spm.attach(pipe, [membranes[0], part], "open", strength={"tree": -0.7}):
        eager = draw(pipe)
    compile_(pipe, "blocks")
    with spm.attach(pipe, part, "open"):
        draw(pipe)
    with spm.attach(pipe, [part, membranes[0]], "open", strength={"tree": -0.7}):
        torch.testing.assert_close(draw(pipe), eager, **CLOSE)


def test_two_denoisers_have_one_twin():
    from hosts.tiny_large import make_wan

    pipe = make_wan(boundary_ratio=0.5)
    pipe.set_progress_bar_config(disable=True)
    pipe.default_num_frames, pipe.default_height, pipe.default_width = 5, 32, 32
    host, membrane = host_for(pipe), membranes_for(pipe)[0]
    assert len(host.denoisers) == 2

    def film():
        generator = torch.Generator().manual_seed(0)
        return host.draw(PROMPTS[:1], steps=4, guidance=4.0, generator=generator, output="latent")

    with spm.attach(pipe, membrane):
        eager = film()
    for part in host.denoisers.values():
        part.compile(backend="eager")
    bare = film()
    with spm.attach(pipe, membrane):
        torch.testing.assert_close(film(), eager, **CLOSE)
    assert torch.equal(film(), bare)
    assert float((bare - eager).abs().max()) > 0.01


def test_weights_changed_after_compiling_are_read(made):
    pipe, membranes = made("unet")
    compile_(pipe, "blocks")
    other, _ = made("unet")
    with spm.attach(pipe, membranes[0]):
        draw(pipe)
        for part in (pipe, other):
            layer = host_for(part).denoiser.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
            with torch.no_grad():
                layer.weight.mul_(2)
        drawn = draw(pipe)
    with spm.attach(other, membranes[0]):
        torch.testing.assert_close(drawn, draw(other), **CLOSE)


def test_a_lora_loaded_after_the_first_call_is_seen(made):
    pipe, membranes = made("unet")
    other, _ = made("unet")
    add_lora(other)
    with spm.attach(other, membranes[0]):
        expected = draw(other)
    compile_(pipe, "blocks")
    with spm.attach(pipe, membranes[0]):
        without = draw(pipe)
    add_lora(pipe)
    with spm.attach(pipe, membranes[0]):
        torch.testing.assert_close(draw(pipe), expected, **CLOSE)
    assert not torch.allclose(without, expected, atol=1e-3)


def test_a_site_that_does_not_run_is_missed(made):
    pipe, membranes = made("unet")
    compile_(pipe, "blocks")
    attention = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    with spm.attach(pipe, membranes[0]):
        draw(pipe)
        attention.to_k = torch.nn.Linear(attention.to_k.in_features, attention.to_k.out_features, bias=False)
        attention.to_k = torch.nn.Sequential(attention.to_k)
        with pytest.raises((SiteNotFiredError, AttachError)):
            draw(pipe)


def test_a_twin_that_could_not_be_filled_is_filled_again(made, monkeypatch):
    """Half of it holds other strengths, as when memory runs out."""
    pipe, membranes = made("unet", 2)
    compile_(pipe, "wrapped")
    written, left = twins._written, [39]

    def failing(*args):
        left[0] -= 1
        if not left[0]:
            raise torch.OutOfMemoryError("simulated")
        return written(*args)

    def drawn(*strengths):
        with guard.given(torch.tensor([strengths])):
            return draw(pipe, PROMPTS[:1], guidance=1.0, steps=1)

    with spm.attach(pipe, membranes, "closed") as guard:
        first = drawn(1.0, 0.0)
        monkeypatch.setattr(twins, "_written", failing)
        with pytest.raises(torch.OutOfMemoryError, match="simulated"):
            drawn(0.0, 1.0)
        monkeypatch.setattr(twins, "_written", written)
        assert torch.equal(drawn(1.0, 0.0), first)


def test_code_that_knows_no_membrane_is_never_drawn_with(made, monkeypatch):
    """If the compiler took the bare code for the twin's, the call would raise."""
    pipe, membranes = made("unet")
    compile_(pipe, "blocks")
    bare = draw(pipe)
    assert bool(torch.isfinite(bare).all())
    own = pipe.unet.forward
    monkeypatch.setattr(twins, "_compiled_alike", lambda *_: own)
    with spm.attach(pipe, membranes[0]), pytest.raises(SiteNotFiredError, match="never ran"):
        draw(pipe)


def test_what_is_compiled_while_attached_goes_to_the_twin_or_is_refused(made):
    pipe, membranes = made("unet")
    with spm.attach(pipe, membranes[0]):
        eager = draw(pipe)
        pipe.unet.compile_repeated_blocks(backend="eager")
        torch.testing.assert_close(draw(pipe), eager, **CLOSE)
        pipe.unet.compile(backend="eager")
        torch.testing.assert_close(draw(pipe), eager, **CLOSE)
    torch._dynamo.reset()
    with spm.attach(pipe, membranes[0]):
        pipe.unet.compile(backend="eager", fullgraph=True)
        with pytest.raises(Exception, match="being compiled with membranes attached"):
            draw(pipe)


def test_what_cannot_be_compiled_alike_is_refused(made):
    pipe, membranes = made("unet")
    pipe.unet._compiled_call_impl = lambda *_, **__: None
    with pytest.raises(AttachError, match="the denoiser is compiled"):
        spm.attach(pipe, membranes[0])
    pipe, membranes = made("unet")
    compile_(pipe, "blocks")
    pipe.unet.enable_group_offload(
        onload_device=torch.device("cpu"), offload_device=torch.device("cpu"), offload_type="leaf_level"
    )
    with spm.attach(pipe, membranes[0]), pytest.raises(AttachError, match=r"compiled and has hooks of diffusers"):
        draw(pipe)


def test_folding_and_training_still_refuse_a_compiled_denoiser(made):
    pipe, membranes = made("unet")
    compile_(pipe, "wrapped")
    with pytest.raises(AttachError, match=r"is compiled \(torch\.compile\)"):
        spm.fold(pipe, membranes[0])
    with pytest.raises(AttachError, match=r"is compiled \(torch\.compile\)"):
        spm.erase(pipe, "cat", progress=False)
