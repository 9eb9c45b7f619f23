"""Adapters of other programs, as those programs write them: names, scale, gate power, and what is refused."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import semipermeable as spm
from semipermeable.errors import MembraneFileError, SiteError
from semipermeable.files.foreign import resolve_foreign
from semipermeable.rank1 import folded_weight
from semipermeable.sites import find_sites

REFERENCE = {"prompts": "snoopy", "rank": "1", "alpha": "1.0"}
LECO = {"prompts": json.dumps({"target": "snoopy", "neutral": ""}), "config": "{}"}
KOHYA = {"ss_network_dim": "4", "ss_network_alpha": "1.0", "ss_output_name": "Snoopy v2", "ss_sd_model_name": "sd15"}


def lora_tensors(denoiser, *, rank=1, alpha=1.0, dtype=torch.float32, seed=0):
    """What SPMNetwork and kohya's LoRANetwork write for every Linear and Conv2d inside Transformer2DModel."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, site in find_sites(denoiser).items():
        base = "lora_unet_" + name.replace(".", "_")
        weight = site.weight
        ones = (1,) * (weight.dim() - 2)
        down = torch.randn(rank, *weight.shape[1:], generator=generator)
        up = torch.randn(weight.shape[0], rank, *ones, generator=generator)
        tensors |= {f"{base}.lora_down.weight": down.to(dtype), f"{base}.lora_up.weight": up.to(dtype)}
        if alpha is not None:
            tensors[f"{base}.alpha"] = torch.tensor(alpha).to(dtype)
    return tensors


@pytest.fixture
def path(tmp_path):
    return tmp_path / "stem.safetensors"


def written(path, tensors, metadata=None):
    save_file(tensors, path, metadata)
    return spm.load(path)


@pytest.mark.parametrize(("rank", "alpha"), [(1, 1.0), (1, 0.5), (4, 1.0), (4, 3.0), (4, None), (2, -1.0)])
def test_folding_gives_weight_plus_alpha_over_rank_up_down(tiny_unet, path, rank, alpha):
    tensors = lora_tensors(tiny_unet, rank=rank, alpha=alpha)
    sites = find_sites(tiny_unet)
    assert {s.weight.dim() for s in sites.values()} == {2, 4}
    resolved = resolve_foreign(written(path, tensors), tiny_unet)
    assert not resolved.foreign_names
    assert list(resolved.pairs) == sorted(sites)
    for name, (u, v) in resolved.pairs.items():
        weight, base = sites[name].weight.detach(), "lora_unet_" + name.replace(".", "_")
        up, down = (tensors[f"{base}.lora_{part}.weight"].double().flatten(1) for part in ("up", "down"))
        delta = (1.0 if alpha is None else alpha / rank) * (up @ down).reshape(weight.shape)
        torch.testing.assert_close(folded_weight(weight, u, v), (weight.double() + delta).float(), rtol=1e-5, atol=1e-5)


def test_attached_it_acts_as_the_reference_layer(tiny_unet, path):
    """The site's output gains lora_up(lora_down(x)) · alpha / rank, computed as the other programs do."""
    tensors = lora_tensors(tiny_unet, rank=4, alpha=2.0)
    resolved = resolve_foreign(written(path, tensors), tiny_unet)
    name = next(n for n, s in find_sites(tiny_unet).items() if isinstance(s.layer, nn.Conv2d))
    base = "lora_unet_" + name.replace(".", "_")
    x = torch.randn(2, tensors[f"{base}.lora_down.weight"].shape[1], 3, 3, generator=torch.Generator().manual_seed(1))
    hidden = nn.functional.conv2d(x, tensors[f"{base}.lora_down.weight"])
    expected = nn.functional.conv2d(hidden, tensors[f"{base}.lora_up.weight"]) * 2.0 / 4
    u, v = resolved.pairs[name]
    ours = nn.functional.conv2d(nn.functional.conv2d(x, v), u[:, :, None, None])
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("alpha", "dtype", "expected"),
    [
        (1.0, torch.float16, torch.float16),
        (None, torch.bfloat16, torch.bfloat16),
        (0.75, torch.float16, torch.float32),
        (0.75, torch.float64, torch.float64),
    ],
)
def test_a_scale_of_one_keeps_the_dtype_and_others_round_once(tiny_unet, path, alpha, dtype, expected):
    tensors = lora_tensors(tiny_unet, alpha=alpha, dtype=dtype)
    for base, (u, v) in written(path, tensors).pairs.items():
        assert (u.dtype, v.dtype) == (expected, dtype)
        up = tensors[f"{base}.lora_up.weight"].flatten(1).double()
        torch.testing.assert_close(u, (up * (alpha or 1.0)).to(expected), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("metadata", "gate_power", "names"),
    [
        (REFERENCE, 2, ("snoopy",)),
        (REFERENCE | {"prompts": "snoopy,charlie brown"}, 2, ("snoopy", "charlie brown")),
        (REFERENCE | {"prompts": "['snoopy', \"it's a dog\"]"}, 2, ("snoopy", "it's a dog")),
        (REFERENCE | {"prompts": "[broken"}, 2, ("[broken",)),
        (REFERENCE | {"prompts": ""}, 2, ("stem",)),
        (REFERENCE | {"format": "pt"}, 2, ("snoopy",)),
        (REFERENCE | {"ss_network_dim": "1"}, 1, ("snoopy",)),
        (LECO, 1, ("snoopy",)),
        (LECO | {"prompts": LECO["prompts"] + "," + json.dumps({"target": "dog"})}, 1, ("snoopy", "dog")),
        (LECO | {"prompts": "{broken"}, 1, ("stem",)),
        ({"rank": "1", "alpha": "1.0", "prompts": LECO["prompts"]}, 1, ("snoopy",)),
        (KOHYA, 1, ("Snoopy v2",)),
        ({"prompts": "snoopy"}, 1, ("snoopy",)),
        (None, 1, ("stem",)),
    ],
)
def test_metadata_tells_the_origin_and_the_concept(tiny_unet, path, metadata, gate_power, names):
    membrane = written(path, lora_tensors(tiny_unet), metadata)
    assert membrane.gate_power == gate_power
    assert membrane.concept.names == names
    assert membrane.foreign_names
    assert all(base.startswith("lora_unet_") for base in membrane.pairs)
    assert spm.load(path, gate_power=3 - gate_power).gate_power == 3 - gate_power


def test_provenance_keeps_what_the_file_says(tiny_unet, path):
    found = written(path, lora_tensors(tiny_unet), REFERENCE).provenance
    assert found.training == {"metadata": REFERENCE, "source": "reference"}
    found = written(path, lora_tensors(tiny_unet), KOHYA).provenance
    assert (found.base_model, found.family, found.training["source"]) == ("sd15", "unet", "kohya")


def test_reference_alpha_comes_from_the_metadata(tiny_unet, path):
    """The reference rebuilds its layers from metadata `alpha`; the tensor is the same number in the saved precision."""
    tensors = lora_tensors(tiny_unet, alpha=0.3, dtype=torch.bfloat16)
    membrane = written(path, tensors, REFERENCE | {"alpha": "0.3"})
    base, (u, _) = next(iter(membrane.pairs.items()))
    up = tensors[f"{base}.lora_up.weight"].flatten(1).double()
    torch.testing.assert_close(u, (up * 0.3).float(), rtol=0, atol=0)
    for text in ("0", "None"):
        tensors = lora_tensors(tiny_unet, rank=2, alpha=2.0)
        membrane = written(path, tensors, REFERENCE | {"alpha": text, "rank": "2"})
        torch.testing.assert_close(
            membrane.pairs[base][0], tensors[f"{base}.lora_up.weight"].flatten(1), rtol=0, atol=0
        )


def test_a_resolved_membrane_saves_and_loads_as_a_native_one(tiny_unet, path, tmp_path):
    foreign = written(path, lora_tensors(tiny_unet), REFERENCE)
    for membrane in (foreign, resolve_foreign(foreign, tiny_unet)):
        spm.save(membrane, tmp_path / "native.safetensors")
        again = spm.load(tmp_path / "native.safetensors")
        assert (again.foreign_names, again.gate_power) == (membrane.foreign_names, 2)
        assert list(again.pairs) == list(membrane.pairs)
        assert again.concept == membrane.concept


def test_resolving_twice_changes_nothing(tiny_unet, path):
    resolved = resolve_foreign(written(path, lora_tensors(tiny_unet)), tiny_unet)
    assert resolve_foreign(resolved, tiny_unet) is resolved


def reshaped(tensors, conv):
    """Write Linears as 1x1 convolutions, or the other way round, as programs for another diffusers version do."""
    changed = {}
    for name, tensor in tensors.items():
        if name.endswith("weight"):
            tensor = tensor.reshape(*tensor.shape[:2], *((1, 1) if conv else ()))
        changed[name] = tensor
    return changed


@pytest.mark.parametrize("conv", [True, False])
def test_linear_and_1x1_convolution_fit_each_other(tiny_unet, path, conv):
    tensors = lora_tensors(tiny_unet, rank=2)
    expected = resolve_foreign(written(path, tensors), tiny_unet)
    found = resolve_foreign(written(path, reshaped(tensors, conv)), tiny_unet)
    for name, pair in expected.pairs.items():
        torch.testing.assert_close(found.pairs[name], pair, rtol=0, atol=0)


BASE = "lora_unet_mid_block_attentions_0_proj_in"
DOWN, UP, ALPHA = (f"{BASE}.{part}" for part in ("lora_down.weight", "lora_up.weight", "alpha"))


@pytest.mark.parametrize(
    ("change", "metadata", "key", "message"),
    [
        ({UP: None}, None, UP, r"is incomplete: '.*lora_up\.weight' is missing"),
        ({DOWN: None}, None, DOWN, r"is incomplete: '.*lora_down\.weight' is missing"),
        ({UP: torch.ones(32, 2, 1, 1)}, None, UP, r"the ranks differ \(up \(32, 2\), down \(1, 32, 1, 1\)\)"),
        ({UP: torch.ones(32, 1, 3, 3)}, None, UP, "must be a 1x1 convolution, found"),
        ({UP: torch.ones(32)}, None, UP, "must be a weight of a Linear or Conv2d"),
        ({DOWN: torch.ones(1, 32, dtype=torch.int32)}, None, DOWN, "must be a weight of a Linear or Conv2d"),
        ({DOWN: torch.full((1, 32), torch.nan)}, None, DOWN, "holds NaN or infinity"),
        ({ALPHA: torch.ones(2)}, None, ALPHA, "must be one number"),
        ({ALPHA: torch.tensor(0.0)}, None, ALPHA, "is 0, which programs read differently"),
        ({ALPHA: torch.tensor(torch.inf)}, None, ALPHA, "holds NaN or infinity"),
        ({ALPHA: torch.tensor(2.0)}, REFERENCE, ALPHA, "is 2, metadata key 'alpha' says 1; make them equal"),
        ({}, REFERENCE | {"alpha": "one"}, "alpha", "metadata key 'alpha' must be a number, found 'one'"),
        ({}, REFERENCE | {"alpha": "nan"}, "alpha", "metadata key 'alpha' must be finite"),
        ({f"{BASE}.lora_mid.weight": torch.ones(1)}, None, f"{BASE}.lora_mid.weight", "LoHa, LoKr, DoRA"),
        ({"lora_te_x.alpha": torch.ones(1)}, None, "lora_te_x.alpha", "changes the text encoder"),
        ({"other": torch.ones(1)}, None, "other", "is none of lora_unet_"),
    ],
)
def test_what_is_refused(tiny_unet, path, change, metadata, key, message):
    tensors = {name: t for name, t in (lora_tensors(tiny_unet) | change).items() if t is not None}
    with pytest.raises(MembraneFileError, match=message) as caught:
        written(path, tensors, metadata)
    assert caught.value.key == key


def renamed(tensors, old, new):
    return {name.replace(old, new): tensor for name, tensor in tensors.items()}


def test_unknown_names_suggest_close_ones(tiny_unet, path):
    membrane = written(path, renamed(lora_tensors(tiny_unet), "mid_block", "mid_blok"))
    with pytest.raises(SiteError, match=r"unknown site 'lora_unet_mid_blok_.*did you mean 'lora_unet_mid_block_"):
        resolve_foreign(membrane, tiny_unet)


def test_another_size_is_refused_naming_the_site(tiny_unet, path):
    tensors = lora_tensors(tiny_unet) | {DOWN: torch.ones(1, 5, 1, 1)}
    with pytest.raises(SiteError, match=r"site 'mid_block\.attentions\.0\.proj_in': membrane has .*of another size"):
        resolve_foreign(written(path, tensors), tiny_unet)


def test_two_sites_with_one_underscored_name_are_ambiguous(path):
    denoiser = nn.ModuleDict({"a": nn.ModuleDict({"b": nn.Linear(2, 2)}), "a_b": nn.Linear(2, 2)})
    tensors = {"lora_unet_a_b.lora_down.weight": torch.ones(1, 2), "lora_unet_a_b.lora_up.weight": torch.ones(2, 1)}
    with pytest.raises(SiteError, match=r"'lora_unet_a_b' fits 'a\.b' and 'a_b'; rename"):
        resolve_foreign(written(path, tensors), denoiser)
