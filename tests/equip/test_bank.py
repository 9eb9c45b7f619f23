"""The laws of a bank: what `attach` with every membrane gives, and only what acts is read."""

import copy
import dataclasses
import threading

import pytest
import torch

import semipermeable as spm
from semipermeable.concept import Concept
from semipermeable.errors import (
    AttachError,
    MembraneError,
    MembraneFileError,
    PermeabilityError,
    UnknownNameError,
    UnknownPromptError,
)
from semipermeable.files.bank import pack
from semipermeable.permeability import Constant, Decision, Transport
from semipermeable.runtime import PathCounts

from helpers import random_membrane

NAMES = ("cat", "dog", "rose", "clock")
PROMPTS = ["an icon of a cat", "an icon of a dog", "a bird", "a cat and a dog"]


def draw(pipe, prompts, *, guidance=4.0, steps=2, **extra):
    generators = [torch.Generator().manual_seed(r) for r in range(len(prompts))]
    options = {"num_inference_steps": steps, "guidance_scale": guidance, "generator": generators}
    return pipe(list(prompts), output_type="latent", **options, **extra).images


def make(pipe, name, seed):
    membrane = random_membrane(pipe.unet, name, scale=0.03, seed=seed, aliases=(f"{name}-like",))
    return dataclasses.replace(membrane, gate_power=2 if name == "dog" else 1)


@pytest.fixture
def membranes(pipe):
    return [make(pipe, name, seed) for seed, name in enumerate(NAMES)]


@pytest.fixture
def folder(membranes, tmp_path):
    folder = tmp_path / "membranes"
    folder.mkdir()
    for membrane in membranes:
        spm.save(membrane, folder / f"{membrane.name}.safetensors")
    return folder


@pytest.fixture(params=["folder", "packed"])
def path(request, folder, tmp_path):
    if request.param == "folder":
        return folder
    pack(folder, tmp_path / "bank.safetensors")
    return tmp_path / "bank.safetensors"


def test_a_bank_draws_what_attaching_every_membrane_draws(pipe, membranes, path):
    bare = draw(pipe, PROMPTS)
    with spm.attach(pipe, membranes, strength={"cat": 0.5}) as guard:
        expected = draw(pipe, PROMPTS)
        trace = {(row.prompt, row.concept): row.gamma for row in guard.trace}
    bank = spm.Bank(path)
    assert (len(bank), bank.names, "cat" in bank) == (4, tuple(sorted(NAMES)), True)
    with spm.attach(pipe, bank, strength={"cat": 0.5}) as guard:
        found = draw(pipe, PROMPTS)
        opened = {(row.prompt, row.concept) for row in guard.trace if row.gamma}
    assert bank.in_memory == ("cat", "dog")
    assert opened == {key for key, gamma in trace.items() if gamma} != set()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert [torch.equal(a, b) for a, b in zip(found, bare, strict=True)] == [False, False, True, False]
    assert torch.equal(draw(pipe, PROMPTS), bare)


def test_a_prompt_that_opens_nothing_reads_nothing_and_runs_idle(pipe, path):
    bare = draw(pipe, ["a bird"])
    bank = spm.Bank(path)
    with spm.attach(pipe, bank) as guard:
        assert torch.equal(draw(pipe, ["a bird"]), bare)
        assert guard.paths == PathCounts(idle=2)
        assert bank.in_memory == ()
        assert draw(pipe, ["a cat"]).shape == bare.shape
        assert guard.paths == PathCounts(idle=2, mixed=2)
        draw(pipe, ["a cat"], guidance=1.0)
        assert guard.paths == PathCounts(idle=2, mixed=2, folded=2)
    assert "Bank" in repr(guard)


def test_membranes_come_and_go_without_attaching_again(pipe, path):
    bank = spm.Bank(path)
    bare = draw(pipe, ["a bird"])
    with spm.attach(pipe, bank) as guard:
        assert torch.equal(draw(pipe, ["a bird"]), bare)
        guard.add(make(pipe, "bird", 20))
        changed = draw(pipe, ["a bird"])
        assert not torch.equal(changed, bare)
        with pytest.raises(AttachError, match="two membranes erase 'bird'"):
            guard.add(make(pipe, "bird", 21))
        guard.remove("bird")
        assert torch.equal(draw(pipe, ["a bird"]), bare)
        with pytest.raises(AttachError, match="unknown membrane 'bird'"):
            guard.remove("bird")
        bank.add(make(pipe, "bird", 20))
        assert torch.equal(draw(pipe, ["a bird"]), changed)


def test_a_changed_folder_is_followed(pipe, folder):
    bank = spm.Bank(folder)
    bare = draw(pipe, ["a bird"])
    with spm.attach(pipe, bank):
        cat = draw(pipe, ["a cat"])
        spm.save(make(pipe, "bird", 20), folder / "bird.safetensors")
        spm.save(make(pipe, "cat", 30), folder / "cat.safetensors")
        (folder / "dog.safetensors").unlink()
        bank.refresh()
        assert set(bank.names) == {*NAMES, "bird"} - {"dog"}
        assert not torch.equal(draw(pipe, ["a bird"]), bare)
        assert not torch.equal(draw(pipe, ["a cat"]), cat)
        spm.save(make(pipe, "cat", 30), folder / "another.safetensors")
        with pytest.raises(MembraneFileError, match=r"another\.safetensors: erases 'cat', as another"):
            bank.refresh()
        assert set(bank.names) == {*NAMES, "bird"} - {"dog"}


def test_what_was_added_in_place_of_a_file_stays_when_the_folder_is_looked_at(pipe, folder):
    bank = spm.Bank(folder)
    bank.remove("cat")
    bank.refresh()
    assert "cat" not in bank
    added = make(pipe, "cat", 30)
    bank.add(added)
    (folder / "cat.safetensors").unlink()
    bank.refresh()
    assert bank.read("cat") is added
    spm.save(make(pipe, "cat", 31), folder / "cat.safetensors")
    with pytest.raises(
        MembraneFileError, match=r"cat\.safetensors: erases 'cat', as another membrane of the bank does"
    ):
        bank.refresh()
    assert bank.read("cat") is added


def test_a_file_of_the_folder_that_was_added_by_hand_is_known_when_the_folder_is_looked_at(pipe, folder):
    bank = spm.Bank(folder)
    spm.save(make(pipe, "bird", 20), folder / "bird.safetensors")
    bank.add(folder / "bird.safetensors")
    bank.remove("cat")
    bank.add(str(folder / "cat.safetensors"))
    bank.refresh()
    assert set(bank.names) == {*NAMES, "bird"}
    (folder / "bird.safetensors").unlink()
    (folder / "cat.safetensors").unlink()
    bank.refresh()
    assert set(bank.names) == {*NAMES} - {"cat"}


def test_a_membrane_that_comes_with_the_package_is_added_by_its_name(pipe, folder):
    bare = draw(pipe, ["a bear"])
    with spm.attach(pipe, spm.Bank(folder)) as guard:
        guard.add("zoo:bear")
        assert not torch.equal(draw(pipe, ["a bear"]), bare)
        with pytest.raises(UnknownNameError, match="unknown zoo membrane 'bird'"):
            guard.add("zoo:bird")


def test_names_are_kept_as_tokens_and_only_while_they_are_in_the_bank(pipe, path):
    bank = spm.Bank(path)
    with spm.attach(pipe, bank) as guard:
        first = draw(pipe, PROMPTS)
        kept = guard._gate._concepts
        assert set(kept) == {"cat", "dog"}
        assert all(name.token_ids and not name.states.numel() for _, c in kept.values() for name in c.encoded)
        guard.remove("cat")
        draw(pipe, PROMPTS)
        assert set(guard._gate._concepts) == {"dog"}
        guard.remove("dog")
        draw(pipe, ["a bird"])
        assert not guard._gate._concepts
    with spm.attach(pipe, spm.Bank(path), "paper") as guard:
        draw(pipe, ["a bird"])
        assert all(name.states.numel() for _, c in guard._gate._concepts.values() for name in c.encoded)
    assert not torch.equal(first, draw(pipe, PROMPTS))


def test_a_packed_bank_cannot_be_refreshed(folder, tmp_path):
    pack(folder, tmp_path / "bank.safetensors")
    with pytest.raises(MembraneError, match="open another Bank"):
        spm.Bank(tmp_path / "bank.safetensors").refresh()


def test_memory_for_membranes_is_bounded_and_the_oldest_go_first(path, membranes):
    size = sum(t.numel() * 4 for pair in membranes[0].pairs.values() for t in pair)
    bank = spm.Bank(path, host_bytes=2 * size)
    for name in ("cat", "dog", "cat", "rose"):
        bank.read(name)
    assert bank.in_memory == ("cat", "rose")
    assert spm.Bank(path, host_bytes=1).read("cat").name == "cat"


def test_two_files_of_one_concept_are_refused(folder, pipe):
    spm.save(make(pipe, "cat", 9), folder / "other.safetensors")
    with pytest.raises(MembraneFileError, match=r"other\.safetensors: erases 'cat', as .*cat\.safetensors does"):
        spm.Bank(folder)


def test_names_that_are_not_in_the_bank_are_refused(pipe, path):
    bank = spm.Bank(path)
    for options in ({"strength": {"bird": 2.0}}, {"permeability": {"bird": 1.0}}):
        with pytest.raises(PermeabilityError, match=r"'bird' is named, but it is not in Bank"):
            spm.attach(pipe, bank, **options)
    with pytest.raises(PermeabilityError, match="finite"):
        spm.attach(pipe, bank, strength=float("inf"))


@pytest.mark.parametrize("rule", ["closed", {"rose": 1.0, "cat": 0.0}, "own", 0.25, "paper"])
def test_every_rule_gives_what_it_gives_without_a_bank(pipe, membranes, path, rule):
    class Own:
        def decide(self, prompts, concept):
            return [Decision(0.5 * (concept.concept.name == "clock"), "mine") for _ in prompts]

    permeability = Own() if rule == "own" else rule
    with spm.attach(pipe, membranes, permeability):
        expected = draw(pipe, PROMPTS)
    with spm.attach(pipe, spm.Bank(path), permeability):
        torch.testing.assert_close(draw(pipe, PROMPTS), expected, atol=1e-3, rtol=1e-3)


def test_a_rule_derived_from_transport_may_open_more_than_the_index_knows_of(pipe, membranes, path):
    class Wide(Transport):
        def decide(self, prompts, concept):
            return [Decision(1.0, "always")] * len(prompts)

    class Unless(Constant):
        def decide(self, prompts, concept):
            return [Decision(float("bird" in prompt.text), "bird") for prompt in prompts]

    for rule in (Wide(), Unless(0.0)):
        with spm.attach(pipe, membranes, rule):
            expected = draw(pipe, ["a bird"])
        with spm.attach(pipe, spm.Bank(path), rule) as guard:
            torch.testing.assert_close(draw(pipe, ["a bird"]), expected, atol=1e-4, rtol=1e-4)
            assert {row.concept for row in guard.trace if row.gamma} == set(NAMES)


def test_unknown_rows_follow_on_unknown(pipe, membranes, path):
    positive, negative = pipe.encode_prompt(PROMPTS[:1], "cpu", 1, True)
    given = {"prompt_embeds": positive, "negative_prompt_embeds": negative}

    def drawn():
        generator = torch.Generator().manual_seed(0)
        return pipe(num_inference_steps=2, generator=generator, output_type="latent", **given).images

    bare = drawn()
    bank = spm.Bank(path)
    with spm.attach(pipe, bank, on_unknown="closed"):
        assert torch.equal(drawn(), bare)
    with spm.attach(pipe, bank, on_unknown="error"), pytest.raises(UnknownPromptError):
        drawn()
    with spm.attach(pipe, membranes):
        expected = drawn()
    with spm.attach(pipe, bank):
        torch.testing.assert_close(drawn(), expected, atol=1e-3, rtol=1e-3)


def test_a_bank_shared_by_two_threads(pipe, path):
    bank = spm.Bank(path)
    prompts = {"a": ["a cat"], "b": ["a rose"]}
    siblings, expected, found = {}, {}, {}
    for key in prompts:
        sibling = type(pipe)(**pipe.components, requires_safety_checker=False)
        sibling.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        sibling.tokenizer = copy.deepcopy(pipe.tokenizer)
        sibling.set_progress_bar_config(disable=True)
        siblings[key] = sibling
    guards = {key: spm.attach(sibling, bank) for key, sibling in siblings.items()}
    for key, sibling in siblings.items():
        expected[key] = draw(sibling, prompts[key])

    def work(key):
        found[key] = [draw(siblings[key], prompts[key]) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(key,)) for key in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for guard in guards.values():
        guard.detach()
    for key, outs in found.items():
        assert all(torch.equal(out, expected[key]) for out in outs)
    assert len(found) == 2


def test_a_membrane_taken_out_while_a_prompt_is_decided_acts_on_nothing(pipe, path):
    """As when another thread takes it out while this one draws."""

    class Named:
        def decide(self, prompts, concept):
            name = concept.concept.name
            if name in leaving and name in bank:
                bank.remove(name)
            return [Decision(float(name in p.text), "named") for p in prompts]

    bank, leaving = spm.Bank(path), set()
    prompts = ["an icon of a cat", "an icon of a dog"]
    bare = draw(pipe, prompts)
    leaving.add("cat")
    with spm.attach(pipe, bank, Named()) as guard:
        drawn = draw(pipe, prompts)
        assert [row.concept for row in guard.trace if row.gamma] == ["dog"]
    assert [torch.equal(a, b) for a, b in zip(drawn, bare, strict=True)] == [True, False]
    leaving.add("dog")
    with spm.attach(pipe, bank, Named()):
        assert torch.equal(draw(pipe, prompts), bare)
    assert bank.names == ("clock", "rose")


def test_a_gate_of_another_text_encoder_is_not_used(pipe, tmp_path):
    from semipermeable.membrane import GateState, Provenance

    gate = GateState("mine", {}, {})
    foreign = dataclasses.replace(
        make(pipe, "cat", 0), gate=gate, provenance=Provenance(text_encoder_hash="another"), concept=Concept("cat")
    )
    spm.save(foreign, tmp_path / "cat.safetensors")
    bare = draw(pipe, ["a bird"])
    with spm.attach(pipe, spm.Bank(tmp_path)):
        assert torch.equal(draw(pipe, ["a bird"]), bare)
