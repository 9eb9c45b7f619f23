"""Membranes and policies on disk: read as a whole, renewed as a whole, and the last good content stays."""

import os
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from semipermeable.errors import MembraneFileError, PolicyError, RefusedError
from semipermeable.files import save
from semipermeable.server import library
from semipermeable.server.config import KeyTable
from semipermeable.server.library import Shelf, scan
from semipermeable.server.painting import ReplicaLost
from semipermeable.server.planning import plan_for
from semipermeable.server.policies import local_policies
from semipermeable.server.state import Keeper


def as_it_is(membrane):
    return membrane


@pytest.fixture
def keeper(folder, policies):
    return Keeper(folder, policies(), as_it_is)


def everything(keys):
    return local_policies(KeyTable(id=keys.acme.id, hash=keys.acme.hash))


def problems(keeper):
    return {problem.file: problem for problem in keeper.state.problems}


def concepts(keeper, tenant, erase=()):
    return [acting.shelved.concept for acting in plan_for(keeper.state, tenant, erase).acting]


def test_an_unchanged_folder_is_not_read_again(folder, keeper):
    reads = []
    before = keeper.state.shelf
    assert scan(folder, before, reads.append) is before
    assert not keeper.refresh()
    assert keeper.state.number == 1


def test_a_new_membrane_and_a_new_policy_take_effect_together_with_a_new_number(keeper, folder, policies, membrane_of):
    save(membrane_of("owl"), folder / "owl.safetensors")
    policies(cats=["cat", "owl"])
    assert keeper.refresh()
    assert keeper.state.number == 2
    assert [acting.shelved.concept for acting in plan_for(keeper.state, "acme", ()).acting] == ["cat", "owl"]
    assert not keeper.state.problems


@pytest.mark.parametrize(
    "error", [ReplicaLost("gone"), MemoryError(), RuntimeError("a bug")], ids=lambda e: type(e).__name__
)
def test_a_membrane_that_cannot_be_looked_at_does_not_hold_a_stricter_policy_back(folder, policies, membrane_of, error):
    errors = []

    def fit(membrane):
        if errors:
            raise errors[0]
        return membrane

    keeper = Keeper(folder, policies(), fit)
    errors.append(error)
    save(membrane_of("owl"), folder / "owl.safetensors")
    policies(cats=["cat", "owl"], zoo=["*"])
    for _ in range(2):
        with pytest.raises(type(error)):
            keeper.refresh()
        assert keeper.state.number == 2
    assert type(error).__name__ in problems(keeper)["membranes"].message
    for tenant, missing in (("acme", "owl"), ("zoo", "membranes")):
        with pytest.raises(RefusedError, match=f"requires '{missing}'"):
            plan_for(keeper.state, tenant, ())
    errors.clear()
    assert keeper.refresh()
    assert concepts(keeper, "acme") == ["cat", "owl"]
    assert concepts(keeper, "zoo") == ["cat", "dog", "owl"]
    assert not keeper.state.problems


@pytest.mark.parametrize("damage", [b"", b"\x80\x04pickle", b"x" * 500], ids=["empty", "pickle", "noise"])
def test_a_broken_membrane_keeps_the_last_good_one_and_is_reported(keeper, folder, damage):
    before = keeper.state.shelf.membranes["cat"]
    (folder / "cat.safetensors").write_bytes(damage)
    assert keeper.refresh()
    assert keeper.state.shelf.membranes["cat"] is before
    assert problems(keeper)["cat.safetensors"].kept
    assert str(folder) not in problems(keeper)["cat.safetensors"].message
    assert plan_for(keeper.state, "acme", ()).acting[0].shelved is before


def test_a_truncated_membrane_is_mended_by_the_next_good_file(keeper, folder, membrane_of):
    whole = (folder / "cat.safetensors").read_bytes()
    (folder / "cat.safetensors").write_bytes(whole[:-100])
    keeper.refresh()
    assert "truncated" in problems(keeper)["cat.safetensors"].message
    save(membrane_of("cat", seed=9), folder / "cat.safetensors")
    keeper.refresh()
    assert not keeper.state.problems


def test_a_broken_file_that_never_was_good_is_no_membrane(keeper, folder):
    (folder / "owl.safetensors").write_bytes(b"x")
    keeper.refresh()
    assert not problems(keeper)["owl.safetensors"].kept
    with pytest.raises(RefusedError, match="unknown membrane in 'erase' 'owl'") as caught:
        plan_for(keeper.state, "acme", ["owl"])
    assert caught.value.status == 400


def test_a_membrane_of_another_model_is_a_problem(folder, policies, service, tiny_unet):
    from helpers import random_membrane

    save(random_membrane(tiny_unet, "owl"), folder / "owl.safetensors")
    service.keeper.refresh()
    assert "owl" not in service.keeper.state.shelf.membranes
    assert "owl.safetensors" in problems(service.keeper)


def test_a_required_membrane_that_is_removed_closes_its_policy_and_no_other(keeper, folder):
    (folder / "cat.safetensors").unlink()
    keeper.refresh()
    with pytest.raises(RefusedError, match=r"policy 'cats' requires 'cat'.*nothing is drawn without") as caught:
        plan_for(keeper.state, "acme", ())
    assert caught.value.status == 503
    assert plan_for(keeper.state, "zoo", ()).acting == ()
    assert "policy 'cats' misses 'cat'; requests are refused" in problems(keeper)["cats"].message


def test_a_policy_that_fails_open_is_drawn_with_what_there_is_and_says_so(folder, policies):
    keeper = Keeper(folder, policies(cats=["cat", "owl"], fail="open"), as_it_is)
    plan = plan_for(keeper.state, "acme", ())
    assert [acting.shelved.concept for acting in plan.acting] == ["cat"]
    assert plan.missing == ("owl",)
    assert "drawn without" in problems(keeper)["cats"].message


def test_two_files_for_one_concept_are_a_problem_and_the_first_name_counts(keeper, folder, membrane_of):
    save(membrane_of("CAT", seed=5), folder / "zz.safetensors")
    keeper.refresh()
    assert keeper.state.shelf.membranes["cat"].file == "cat.safetensors"
    assert "as 'cat.safetensors' does" in problems(keeper)["zz.safetensors"].message


def test_a_second_file_of_a_concept_is_not_missing_where_every_membrane_is_required(folder, keys, membrane_of):
    save(membrane_of("CAT", seed=5), folder / "zz.safetensors")
    keeper = Keeper(folder, everything(keys), as_it_is)
    assert concepts(keeper, "local") == ["cat", "dog"]
    assert set(problems(keeper)) == {"zz.safetensors"}


def refused_by_system(path):
    raise PermissionError(13, "Permission denied", str(path))


def refused_by_system_while_parsed(path):
    raise MembraneFileError(f"{path}: cannot be read: Too many open files") from OSError(24, "Too many open files")


@pytest.mark.parametrize("refused", [refused_by_system, refused_by_system_while_parsed])
def test_a_membrane_that_the_system_did_not_let_us_read_is_read_as_soon_as_it_does(
    keeper, folder, membrane_of, monkeypatch, refused
):
    save(membrane_of("owl"), folder / "owl.safetensors")
    with monkeypatch.context() as broken:
        broken.setattr(library, "load", refused)
        assert keeper.refresh()
        assert "cannot be read" in problems(keeper)["owl.safetensors"].message
        assert not keeper.refresh()
    assert keeper.refresh()
    assert "owl" in keeper.state.shelf.membranes
    assert not keeper.state.problems


def test_a_policy_file_that_the_system_did_not_let_us_read_is_read_as_soon_as_it_does(keeper, policies, monkeypatch):
    policies(cats=["cat", "dog"])
    with monkeypatch.context() as broken:
        broken.setattr("pathlib.Path.read_bytes", refused_by_system)
        assert keeper.refresh()
        assert "Permission denied" in problems(keeper)["policies.toml"].message
        assert not keeper.refresh()
    assert keeper.refresh()
    assert concepts(keeper, "acme") == ["cat", "dog"]
    assert not keeper.state.problems


def test_a_broken_policy_file_keeps_the_last_good_one(keeper, tmp_path, policies):
    before = keeper.state.policies
    (tmp_path / "policies.toml").write_text("[[policy]]\nname = 3\n")
    assert keeper.refresh()
    assert keeper.state.policies is before
    assert "policy.1.name" in problems(keeper)["policies.toml"].message
    assert not keeper.refresh()
    policies()
    assert keeper.refresh()
    assert not keeper.state.problems


def test_a_policy_file_that_vanishes_keeps_the_last_good_one(keeper, tmp_path):
    (tmp_path / "policies.toml").unlink()
    keeper.refresh()
    assert "acme" in keeper.state.policies.tenants
    assert "cannot be read" in problems(keeper)["policies.toml"].message


def test_a_broken_policy_file_at_the_start_is_an_error(folder, tmp_path):
    (tmp_path / "policies.toml").write_text("nonsense")
    with pytest.raises(PolicyError, match="not valid TOML"):
        Keeper(folder, tmp_path / "policies.toml", as_it_is)


def test_a_folder_that_vanishes_keeps_its_membranes(keeper, folder):
    shutil.rmtree(folder)
    keeper.refresh()
    assert set(keeper.state.shelf.membranes) == {"cat", "dog"}
    assert "cannot be read" in problems(keeper)["membranes"].message
    assert not keeper.refresh()


def test_a_folder_that_cannot_be_read_does_not_make_a_file_usable_that_never_was(folder, keys):
    (folder / "owl.safetensors").write_bytes(b"x")
    keeper = Keeper(folder, everything(keys), as_it_is)
    away = folder.rename(folder.with_name("away"))
    assert keeper.refresh()
    assert set(problems(keeper)) == {"membranes", "owl.safetensors", "local"}
    with pytest.raises(RefusedError, match=r"requires 'owl\.safetensors'"):
        plan_for(keeper.state, "local", ())
    assert not keeper.refresh()
    away.rename(folder)
    assert keeper.refresh()
    assert set(problems(keeper)) == {"owl.safetensors", "local"}


def test_every_membrane_means_every_membrane(folder, keys, membrane_of):
    keeper = Keeper(folder, everything(keys), as_it_is)
    assert [acting.shelved.concept for acting in plan_for(keeper.state, "local", ()).acting] == ["cat", "dog"]
    (folder / "owl.safetensors").write_bytes(b"x")
    keeper.refresh()
    with pytest.raises(RefusedError, match=r"requires 'owl\.safetensors'"):
        plan_for(keeper.state, "local", ())
    save(membrane_of("owl"), folder / "owl.safetensors")
    keeper.refresh()
    assert len(plan_for(keeper.state, "local", ()).acting) == 3


def test_every_membrane_of_a_folder_that_is_not_there_is_refused(tmp_path, keys):
    keeper = Keeper(tmp_path / "no", everything(keys), as_it_is)
    with pytest.raises(RefusedError, match="requires 'no'"):
        plan_for(keeper.state, "local", ())


def test_hidden_temporary_and_other_files_are_not_opened(folder, policies):
    (folder / ".cat.safetensors.tmp").write_bytes(b"x")
    (folder / ".hidden.safetensors").write_bytes(b"x")
    (folder / "evil.pt").write_bytes(b"x")
    (folder / "owl.checkpoint.safetensors").write_bytes(b"x")
    (folder / "sub.safetensors").mkdir()
    assert not Keeper(folder, policies(), as_it_is).state.problems


def test_a_request_adds_and_never_removes(keeper):
    assert concepts(keeper, "acme", []) == ["cat"]
    assert concepts(keeper, "acme", ["dog"]) == ["cat", "dog"]
    assert concepts(keeper, "acme", ["cat", " DOG ", "dog"]) == ["cat", "dog"]
    added = plan_for(keeper.state, "acme", ["dog"]).acting
    assert [(a.source, a.strength) for a in added] == [("policy", 1.0), ("request", 1.0)]


def test_the_version_follows_policy_and_bytes_and_nothing_else(folder, policies, membrane_of):
    versions = []
    for change in (
        lambda: None,
        lambda: os.utime(folder / "cat.safetensors"),
        lambda: save(membrane_of("owl"), folder / "owl.safetensors"),
        lambda: save(membrane_of("cat", seed=7), folder / "cat.safetensors"),
        lambda: policies(strength=2.0),
    ):
        change()
        state = Keeper(folder, folder.parent / "policies.toml", as_it_is).state
        versions.append(state.version_of(state.policies.policies["cats"]))
    assert versions[0] == versions[1] == versions[2]
    assert len(set(versions[2:])) == 3


@given(st.integers(0, 2000), st.binary(max_size=40))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_damage_to_a_file_is_a_problem_or_a_membrane(folder, at, patch):
    whole = (folder / "dog.safetensors").read_bytes()
    place = folder.parent / "damaged"
    place.mkdir(exist_ok=True)
    (place / "dog.safetensors").write_bytes(whole[:at] + patch + whole[at + len(patch) :])
    shelf = scan(place, Shelf(), as_it_is)
    assert len(shelf.membranes) + len(shelf.problems) == 1


@given(st.binary(max_size=300))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_bytes_are_a_problem(tmp_path, data):
    place = tmp_path / "noise"
    place.mkdir(exist_ok=True)
    (place / "noise.safetensors").write_bytes(data)
    shelf = scan(place, Shelf(), as_it_is)
    assert not shelf.membranes
    assert len(shelf.problems) == 1
