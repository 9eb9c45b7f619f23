"""The ComfyUI nodes against a stand-in of its documented interface; the real application was not run."""

import dataclasses
import gc
import importlib.util
import sys
import types
import weakref
from pathlib import Path

import pytest
import torch

from semipermeable.concept import Concept
from semipermeable.errors import AttachError, CalibrationError, SiteError
from semipermeable.files import save
from semipermeable.hosts import host_for
from semipermeable.membrane import GateState
from semipermeable.permeability import Calibration, GatedConcept, Transport
from semipermeable.runtime import Binding

from helpers import make_tiny_unet, random_membrane

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def load_package(name, folder, file="__init__.py"):
    """Import a folder as ComfyUI imports a folder of custom nodes."""
    spec = importlib.util.spec_from_file_location(name, folder / file, submodule_search_locations=[str(folder)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


stand_in = load_package("comfy_stand_in", HERE, "comfy_stand_in.py")


@pytest.fixture
def comfy(tmp_path, monkeypatch):
    """The modules that nodes import when they run, and the folder of membranes."""
    conds = types.ModuleType("comfy.conds")
    conds.CONDRegular = stand_in.CONDRegular
    comfy = types.ModuleType("comfy")
    comfy.conds = conds
    folder_paths = types.ModuleType("folder_paths")
    folder_paths.models_dir = str(tmp_path / "models")
    monkeypatch.setitem(sys.modules, "comfy", comfy)
    monkeypatch.setitem(sys.modules, "comfy.conds", conds)
    monkeypatch.setitem(sys.modules, "folder_paths", folder_paths)
    folder = tmp_path / "models" / "membranes"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def nodes(comfy):
    package = load_package("semipermeable_nodes", ROOT / "integrations" / "comfyui")
    yield package.NODE_CLASS_MAPPINGS
    for name in [name for name in sys.modules if name.partition(".")[0] == "semipermeable_nodes"]:
        del sys.modules[name]


@pytest.fixture
def clip(pipe):
    return stand_in.CLIP(pipe.tokenizer, pipe.text_encoder)


@pytest.fixture
def load_node(nodes):
    return nodes["SemipermeableLoadMembranes"]()


@pytest.fixture
def gate_node(nodes):
    return nodes["SemipermeableGatePrompt"]()


def latents(rows=1, seed=0):
    return torch.randn(rows, 4, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_the_interface_that_comfyui_asks_for(nodes):
    assert sorted(nodes) == [
        "SemipermeableGatePrompt",
        "SemipermeableLoadMembranes",
        "SemipermeableShowGamma",
    ]
    for node in nodes.values():
        inputs = node.INPUT_TYPES()
        assert set(inputs) <= {"required", "optional"}
        assert all(isinstance(entry, tuple) for group in inputs.values() for entry in group.values())
        assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
        assert callable(getattr(node(), node.FUNCTION))
        assert node.CATEGORY == "semipermeable"


def test_rows_are_gated_like_those_of_a_diffusers_pipeline(comfy, load_node, gate_node, pipe, clip):
    """Same layers, same numbers: bit for bit what the package does with a diffusers UNet, for every row of a call."""
    cat, neon = random_membrane(pipe.unet, "cat"), random_membrane(pipe.unet, "neon", seed=1)
    save(cat, comfy / "cat.safetensors")
    save(neon, comfy / "neon.safetensors")
    patcher = stand_in.patcher_of(pipe.unet)
    model, membranes = load_node.load(patcher, "cat.safetensors\n\n neon.safetensors ", 0.5)
    prompts = ["a flat icon of a cat", "a neon icon of a dog", "a neon icon of a cat", "a flat icon of a dog"]
    expected_gamma = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]
    gated = [gate_node.encode(clip, membranes, prompt, False) for prompt in prompts]
    negative, _ = gate_node.encode(clip, membranes, "a cat", True)
    x, t = latents(2), torch.tensor([500, 500])
    with torch.no_grad():
        found = stand_in.sample_once(model, [*(conditioning for conditioning, _ in gated), negative], x, t)
        assert patcher.model.calls == [(10, [0, 1, 2, 3, 4])], "one call for all"
        states = torch.cat([conditioning[0][0] for conditioning, _ in gated] + [negative[0][0]]).repeat_interleave(2, 0)
        strengths = 0.5 * torch.tensor([*expected_gamma, [0.0, 0.0]]).repeat_interleave(2, 0)
        binding = Binding(pipe.unet, [cat, neon])
        with binding.activate(strengths):
            wanted = pipe.unet(x.repeat(5, 1, 1, 1), t.repeat(5), encoder_hidden_states=states).sample
        binding.remove()
        bare = pipe.unet(x.repeat(5, 1, 1, 1), t.repeat(5), encoder_hidden_states=states).sample
    assert torch.equal(torch.cat(found), wanted)
    assert torch.equal(found[3], bare.chunk(5)[3])
    assert torch.equal(found[4], bare.chunk(5)[4])
    assert not torch.equal(found[0], bare.chunk(5)[0])


def test_the_model_given_stays_as_it_is(comfy, load_node, gate_node, pipe, clip):
    save(random_membrane(pipe.unet, "cat"), comfy / "cat.safetensors")
    patcher = stand_in.patcher_of(pipe.unet)
    plain = clip.encode_from_tokens_scheduled(clip.tokenize("a flat icon of a cat"))
    x, t = latents(), torch.tensor([500])
    with torch.no_grad():
        before = stand_in.sample_once(patcher, [plain], x, t)[0]
        load_node.load(patcher, "cat.safetensors", 1.0)
        assert torch.equal(stand_in.sample_once(patcher, [plain], x, t)[0], before)
    assert "model_function_wrapper" not in patcher.model_options


def test_everything_leaves_with_the_model(comfy, load_node, gate_node, pipe, clip):
    save(random_membrane(pipe.unet, "cat"), comfy / "cat.safetensors")
    patcher = stand_in.patcher_of(pipe.unet)
    model, membranes = load_node.load(patcher, "cat.safetensors", 1.0)
    conditioning, _ = gate_node.encode(clip, membranes, "a cat", False)
    with torch.no_grad():
        stand_in.sample_once(model, [conditioning], latents(), torch.tensor([500]))
    wrapper = weakref.ref(model.model_options["model_function_wrapper"])
    copied = model.clone()
    del model
    gc.collect()
    assert wrapper() is not None, "the clone shares it"
    del copied
    gc.collect()
    assert wrapper() is None
    for module in patcher.model.diffusion_model.modules():
        assert not module._forward_hooks
        assert "forward" not in module.__dict__


def test_a_wrapper_that_was_there_is_called_too(comfy, load_node, gate_node, pipe, clip):
    save(random_membrane(pipe.unet, "cat"), comfy / "cat.safetensors")
    patcher = stand_in.patcher_of(pipe.unet)
    seen = []

    def theirs(apply_model, arguments):
        seen.append(sorted(arguments["c"]))
        return apply_model(arguments["input"], arguments["timestep"], **arguments["c"])

    patcher.set_model_unet_function_wrapper(theirs)
    model, membranes = load_node.load(patcher, "cat.safetensors", 1.0)
    conditioning, _ = gate_node.encode(clip, membranes, "a cat", False)
    with torch.no_grad():
        stand_in.sample_once(model, [conditioning], latents(), torch.tensor([500]))
    assert seen == [["c_crossattn", "transformer_options"]], "γ is ours, the others never see it"


def test_a_conditioning_without_gamma_is_refused(comfy, load_node, gate_node, pipe, clip):
    save(random_membrane(pipe.unet, "cat"), comfy / "cat.safetensors")
    save(random_membrane(pipe.unet, "dog"), comfy / "dog.safetensors")
    model, membranes = load_node.load(stand_in.patcher_of(pipe.unet), "cat.safetensors", 1.0)
    _, others = load_node.load(stand_in.patcher_of(pipe.unet), "dog.safetensors", 1.0)
    plain = clip.encode_from_tokens_scheduled(clip.tokenize("a cat"))
    wrong, _ = gate_node.encode(clip, others, "a cat", False)
    right, _ = gate_node.encode(clip, membranes, "a cat", False)
    for conditionings in ([plain], [wrong], [right, plain]):
        with pytest.raises(AttachError, match=r"was not gated for the membranes of this model \(cat\); encode it with"):
            stand_in.sample_once(model, conditionings, latents(), torch.tensor([500]))


def test_a_model_with_membranes_takes_no_second_loader(comfy, load_node, pipe):
    save(random_membrane(pipe.unet, "cat"), comfy / "cat.safetensors")
    first, _ = load_node.load(stand_in.patcher_of(pipe.unet), "cat.safetensors", 1.0)
    with pytest.raises(AttachError, match="has membranes already; name all files in one Load Membranes"):
        load_node.load(first.clone(), "cat.safetensors", 1.0)


def test_a_conditioning_of_another_node_is_gated_only(comfy, load_node, gate_node, pipe, clip):
    save(random_membrane(pipe.unet, "cat"), comfy / "cat.safetensors")
    _, membranes = load_node.load(stand_in.patcher_of(pipe.unet), "cat.safetensors", 1.0)
    states, other = torch.randn(1, 24, 192), stand_in.CONDRegular(torch.ones(1, 1))
    given = [[states, {"pooled_output": None, "area": (1, 2, 3, 4), "model_conds": {"theirs": other}}]]
    conditioning, _ = gate_node.encode(clip, membranes, "a cat", False, given)
    assert conditioning[0][0] is states
    assert conditioning[0][1]["area"] == (1, 2, 3, 4)
    assert conditioning[0][1]["model_conds"]["theirs"] is other
    assert conditioning[0][1]["model_conds"][membranes.key].cond.tolist() == [[1.0]]
    assert given[0][1]["model_conds"] == {"theirs": other}, "what was given stays as it is"


PROMPTS = [
    "a cat", "two cats", "A CAT!", "a ccat on a mat", "a cat face", "a cat beside a cat face", "a hot dog", "a dog", "",
    "(cat:1.3) on a mat", "a catalogue", "dandelions", "a kitty", "an icon of an animal", "a caat, neon style",
]  # fmt: skip


@pytest.mark.parametrize("gated", [True, False], ids=["fitted gate", "names alone"])
def test_gamma_is_that_of_the_default_rule_where_names_decide(comfy, load_node, gate_node, pipe, clip, gated):
    host = host_for(pipe)
    calibration = Calibration(
        weight=torch.ones(192), bias=100.0, threshold=0.5, keep=("cat face",), known=("ccat",), encoder_hash="x",
        num_positives=30, num_negatives=30, held_out_open_rate=1.0, held_out_false_open_rate=0.0,
    )  # fmt: skip
    gate = GateState("transport", *calibration.to_parts()) if gated else None
    concept = Concept("cat", aliases=("kitty",))
    membrane = dataclasses.replace(random_membrane(pipe.unet, "cat", every=9), concept=concept, gate=gate)
    save(membrane, comfy / "cat.safetensors")
    _, membranes = load_node.load(stand_in.patcher_of(pipe.unet), "cat.safetensors", 1.0)
    off = GateState("transport", *dataclasses.replace(calibration, threshold=None).to_parts()) if gated else None
    asked = GatedConcept(concept, tuple(host.encode(concept.names)), host.encode([""])[0], off)
    wanted = Transport().decide(host.encode(PROMPTS), asked)
    found = [gate_node.encode(clip, membranes, prompt, False)[1].decisions[0][1] for prompt in PROMPTS]
    assert [decision.gamma for decision in found] == [decision.gamma for decision in wanted]
    assert {decision.gamma for decision in found} == {0.0, 1.0}
    assert [decision.gamma for decision in found][PROMPTS.index("a cat face")] == (0.0 if gated else 1.0)
    assert [decision.gamma for decision in found][PROMPTS.index("a ccat on a mat")] == (0.0 if gated else 1.0)


def test_a_word_far_behind_in_a_long_prompt_counts(comfy, load_node, gate_node, pipe, clip):
    save(random_membrane(pipe.unet, "cat", every=9), comfy / "cat.safetensors")
    _, membranes = load_node.load(stand_in.patcher_of(pipe.unet), "cat.safetensors", 1.0)
    long = "a very detailed picture, " * 40
    assert len(clip.tokenize(long)["l"]) > 2
    _, closed = gate_node.encode(clip, membranes, long, False)
    _, opened = gate_node.encode(clip, membranes, long + "of a cat", False)
    assert [report.decisions[0][1].gamma for report in (closed, opened)] == [0.0, 1.0]


def test_gamma_is_shown(comfy, load_node, gate_node, nodes, pipe, clip):
    save(random_membrane(pipe.unet, "cat", every=9), comfy / "cat.safetensors")
    _, membranes = load_node.load(stand_in.patcher_of(pipe.unet), "cat.safetensors", 1.0)
    show = nodes["SemipermeableShowGamma"]()
    _, report = gate_node.encode(clip, membranes, "a flat icon of a cat", False)
    shown = show.show(report)
    assert shown["ui"]["text"] == list(shown["result"])
    assert shown["result"][0] == "a flat icon of a cat\nγ cat = 1  (name found: 'cat')"
    _, report = gate_node.encode(clip, membranes, "a dog", False)
    assert show.show(report)["result"][0] == "a dog\nγ cat = 0  (no name found; ComfyUI looks at names only)"
    _, report = gate_node.encode(clip, membranes, "a cat", True)
    assert show.show(report)["result"][0] == "a cat\nγ cat = 0  (negative prompt)"


def test_a_changed_file_is_loaded_again(comfy, nodes, pipe):
    node = nodes["SemipermeableLoadMembranes"]
    save(random_membrane(pipe.unet, "cat", every=9), comfy / "cat.safetensors")
    first = node.IS_CHANGED(files="cat.safetensors", model=None, strength=1.0)
    assert node.IS_CHANGED(files=" cat.safetensors\n", model=None, strength=2.0) == first
    save(random_membrane(pipe.unet, "cat", every=9, seed=1), comfy / "cat.safetensors")
    assert node.IS_CHANGED(files="cat.safetensors", model=None, strength=1.0) != first


def test_what_is_refused(comfy, load_node, gate_node, pipe, clip):
    patcher = stand_in.patcher_of(pipe.unet)
    with pytest.raises(AttachError, match="no membrane was named"):
        load_node.load(patcher, " \n", 1.0)
    other = random_membrane(make_tiny_unet(), "cat")
    save(other, comfy / "small.safetensors")
    with pytest.raises((SiteError, AttachError), match=r"made for (a|another) model"):
        load_node.load(patcher, "small.safetensors", 1.0)
    foreign = dataclasses.replace(random_membrane(pipe.unet, "cat"), foreign_names=True)
    save(foreign, comfy / "foreign.safetensors")
    with pytest.raises(AttachError, match="spm import FILE --model MODEL"):
        load_node.load(patcher, "foreign.safetensors", 1.0)
    save(random_membrane(pipe.unet, "cat"), comfy / "cat.safetensors")
    transformer = stand_in.ModelPatcher(types.SimpleNamespace(diffusion_model=torch.nn.Linear(2, 2)))
    with pytest.raises(AttachError, match=r"Linear is no UNet of Stable Diffusion"):
        load_node.load(transformer, "cat.safetensors", 1.0)
    odd = dataclasses.replace(random_membrane(pipe.unet, "cat", every=9), gate=GateState("image", {}))
    save(odd, comfy / "odd.safetensors")
    _, membranes = load_node.load(patcher, "odd.safetensors", 1.0)
    with pytest.raises(CalibrationError, match="kind 'image'"):
        gate_node.encode(clip, membranes, "a cat", False)
