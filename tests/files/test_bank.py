"""A packed file: the members' own bytes, an index in front, and an error for every way to damage it."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import semipermeable as spm
from semipermeable.concept import Concept
from semipermeable.errors import MembraneFileError, OutputError
from semipermeable.files.bank import BANK_KEY, PackedFile, pack, scan_folder
from semipermeable.membrane import GateState, Membrane, Provenance


def make(name, *, gate=True, rank=1):
    generator = torch.Generator().manual_seed(len(name))
    pairs = {"a.b": (torch.randn(5, rank, generator=generator), torch.randn(rank, 3, generator=generator))}
    tensors = {"weight": torch.randn(7, generator=generator), "table": torch.arange(6).reshape(2, 3)}
    state = GateState("transport", {"bias": 0.5}, tensors) if gate else None
    return Membrane(pairs, Concept(name, aliases=(f"{name}s",)), Provenance(base_model="zoo:x"), state)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "membranes"
    folder.mkdir()
    for name, options in (("dog", {}), ("cat", {"gate": False}), ("van gogh", {"rank": 3})):
        spm.save(make(name, **options), folder / f"{name}.safetensors")
    return folder


def test_packing_keeps_every_member_and_gate(folder, tmp_path):
    assert pack(folder, tmp_path / "bank.safetensors") == 3
    records = PackedFile(tmp_path / "bank.safetensors").records
    assert [record.name for record in records] == ["cat", "dog", "van gogh"]
    for record in records:
        original = spm.load(folder / f"{record.name}.safetensors")
        again = record.read()
        assert again.concept == original.concept == record.story.concept
        assert again.provenance == original.provenance == record.story.provenance
        for site, pair in original.pairs.items():
            assert all(torch.equal(a, b) for a, b in zip(pair, again.pairs[site], strict=True))
        assert (record.gate is None) == (original.gate is None)
        for name, tensor in (original.gate.tensors if original.gate else {}).items():
            assert torch.equal(record.gate.tensors[name], tensor)
            assert torch.equal(again.gate.tensors[name], tensor)


def test_equal_folders_give_equal_bytes_and_members_are_files(folder, tmp_path):
    for name in ("a", "b"):
        pack(folder, tmp_path / f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    member = load_file(tmp_path / "a.safetensors")["member::0000001"]
    assert member.numpy().tobytes() == (folder / "dog.safetensors").read_bytes()


def test_scanning_a_folder_gives_what_packing_gives(folder, tmp_path):
    pack(folder, tmp_path / "bank.safetensors")
    packed = {record.name: record for record in PackedFile(tmp_path / "bank.safetensors").records}
    for record in scan_folder(folder).values():
        assert record.story == packed[record.name].story
        assert (record.gate is None) == (packed[record.name].gate is None)
    (folder / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(MembraneFileError, match=r"bad\.safetensors"):
        scan_folder(folder)
    with pytest.raises(MembraneFileError, match="is no folder of membranes"):
        scan_folder(folder / "nowhere")


def test_what_cannot_be_packed_is_refused_and_nothing_is_written(folder, tmp_path):
    out = tmp_path / "bank.safetensors"
    with pytest.raises(OutputError, match=r"ends in \.safetensors"):
        pack(folder, tmp_path / "bank.bin")
    with pytest.raises(OutputError, match="choose another folder"):
        pack(folder, folder / "bank.safetensors")
    spm.save(make("dog"), folder / "again.safetensors")
    with pytest.raises(MembraneFileError, match=r"again\.safetensors and dog\.safetensors both erase 'dog'"):
        pack(folder, out)
    for file in folder.iterdir():
        file.unlink()
    with pytest.raises(MembraneFileError, match="nothing to pack"):
        pack(folder, out)
    assert list(tmp_path.iterdir()) == [folder]


def rewritten(path, *, change=None, metadata=None):
    tensors = load_file(path)
    if change:
        change(tensors)
    save_file(tensors, path, metadata or {BANK_KEY: '{"num": 3, "version": 1}'})


def set_index(text):
    def change(tensors):
        tensors["index"] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)

    return change


def as_bf16(name):
    def change(tensors):
        tensors[name] = tensors[name][: len(tensors[name]) // 2 * 2].view(torch.bfloat16).clone()

    return change


def damage_gate(tensors):
    listing = json.loads(tensors["index"].numpy().tobytes())
    set_index(json.dumps([{**listing[0], "gate": []}, *listing[1:]]))(tensors)


@pytest.mark.parametrize(
    ("change", "metadata", "message"),
    [
        (None, {"other": "1"}, "is no packed bank"),
        (None, {BANK_KEY: '{"version": 2}'}, "bank version 2"),
        (lambda tensors: tensors.pop("index"), None, "has no tensor 'index'"),
        (set_index("{"), None, "index is not JSON"),
        (set_index("[]"), None, "does not list its 3 members"),
        (set_index("[1, 2, 3]"), None, "entry 0 of its index is not usable"),
        (damage_gate, None, "entry 0 of its index is not usable"),
        (lambda tensors: tensors.update(index=torch.zeros(4, dtype=torch.bfloat16)), None, r"'index' must hold bytes"),
        (as_bf16("member::0000001"), None, "'member::0000001' must hold bytes"),
        (lambda tensors: tensors.pop("gate::F32::7"), None, "entry 1 of its index is not usable"),
    ],
)
def test_a_damaged_bank_is_refused_when_it_is_opened(folder, tmp_path, change, metadata, message):
    path = tmp_path / "bank.safetensors"
    pack(folder, path)
    rewritten(path, change=change, metadata=metadata)
    with pytest.raises(MembraneFileError, match=message):
        PackedFile(path)


def test_a_damaged_member_is_refused_when_it_is_read(folder, tmp_path):
    path = tmp_path / "bank.safetensors"
    pack(folder, path)

    def flip(tensors):
        tensors["member::0000001"][-1] ^= 1

    rewritten(path, change=flip)
    records = PackedFile(path).records
    assert records[0].read().name == "cat"
    with pytest.raises(MembraneFileError, match="SHA-256 differs"):
        records[1].read()


def test_a_membrane_of_another_format_is_packed_as_ours(folder, tmp_path):
    tensors = {"lora_unet_x.lora_up.weight": torch.ones(4, 1), "lora_unet_x.lora_down.weight": torch.ones(1, 4)}
    save_file(tensors, folder / "kohya.safetensors", {"ss_tag_frequency": json.dumps({})})
    expected = spm.load(folder / "kohya.safetensors")
    pack(folder, tmp_path / "bank.safetensors")
    record = next(r for r in PackedFile(tmp_path / "bank.safetensors").records if r.name == expected.name)
    assert record.story.foreign_names
    assert record.read().pairs.keys() == expected.pairs.keys()


def test_packing_replaces_no_file_that_it_packs(folder, tmp_path):
    """Also where the folder holds a link to a file elsewhere."""
    elsewhere = tmp_path / "fox.safetensors"
    spm.save(make("fox"), elsewhere)
    (folder / "fox.safetensors").symlink_to(elsewhere)
    before = elsewhere.read_bytes()
    with pytest.raises(OutputError, match="is read for it and would be lost"):
        pack(folder, elsewhere)
    assert elsewhere.read_bytes() == before
