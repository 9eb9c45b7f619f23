"""The membranes that come with the bundled model: there, sound, found by name, and doing what their figures say."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import semipermeable as spm
from semipermeable import zoo
from semipermeable.cli import app
from semipermeable.errors import AttachError, ConfigError, UnknownNameError, ZooError
from semipermeable.evaluation.erasers.registry import eraser
from semipermeable.evaluation.pretuned import build_pretuned
from semipermeable.evaluation.pretuned_plan import OBJECTS, PretunedPlan, Subject, kept_rows, subjects, target_rows
from semipermeable.files.native import to_bytes
from semipermeable.generation import generate, read_facts
from semipermeable.rates import wilson_interval
from semipermeable.training import enrich
from semipermeable.zoo import bundle
from semipermeable.zoo.shipped import FIGURES, PACKED, load_membrane, shipped_name

SPEC = zoo.spec("emoji")
FOUND = zoo.membrane_figures("emoji")


@pytest.fixture
def cli(tmp_path, monkeypatch):
    """Run a command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


def refusal(result):
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1
    return lines[0]


# What is shipped


def test_at_least_forty_ship_of_every_kind():
    kinds = [row["kind"] for row in FOUND["membranes"].values()]
    assert len(kinds) >= 40
    assert {kind: kinds.count(kind) for kind in ("style", "canary", "broad")} == {"style": 8, "canary": 4, "broad": 1}
    assert kinds.count("object") >= 27
    assert zoo.membranes() == zoo.membranes("emoji") == sorted(FOUND["membranes"])
    assert set(SPEC.styles) <= set(zoo.membranes())


def test_every_gate_is_fitted():
    assert {row["gate"] for row in FOUND["membranes"].values()} == {"transport"}


def test_the_bundle_stays_small():
    files = zoo.info("emoji")["files"]
    assert sum(entry["bytes"] for entry in files.values()) <= 30_000_000
    assert {PACKED, FIGURES} <= set(files)


@pytest.mark.parametrize("name", zoo.membranes())
def test_every_shipped_membrane_is_what_its_figures_say(name):
    membrane, row = zoo.membrane(name), FOUND["membranes"][name]
    data = to_bytes(membrane)
    assert len(data) == row["bytes"]
    assert spm.zoo.info("emoji")["name"] == membrane.provenance.base_model.removeprefix("zoo:")
    assert (membrane.name, list(membrane.concept.aliases)) == (name, row["aliases"])
    assert membrane.provenance.seed == FOUND["seed"]
    assert membrane.provenance.metrics["target_after"] == row["target"]["after"]["value"]
    assert {u.dtype for u, _ in membrane.pairs.values()} == {torch.float16}
    assert row["gate"] == (membrane.gate.kind if membrane.gate else None)


@pytest.mark.parametrize("name", zoo.membranes())
def test_figures_are_sound(name):
    row = FOUND["membranes"][name]
    rates = [row["kept_gated_identical"], row["opened"]]
    pairs = [row[key] for key in ("target", "twins", "other_axis", "kept_open") if key in row]
    for rate in [*rates, *(pair[when] for pair in pairs for when in ("before", "after"))]:
        assert rate["value"] == pytest.approx(rate["successes"] / rate["n"], abs=1e-4)
        assert rate["wilson95"] == pytest.approx(wilson_interval(rate["successes"], rate["n"]), abs=1e-4)
    # Without a concept that was drawn before nothing is proved; a gate that opens elsewhere must not ship at all.
    assert row["target"]["before"]["value"] >= 0.8
    assert row["kept_gated_identical"]["value"] == 1


def test_shipped_and_base_weights_belong_together(pipe):
    from semipermeable.hosts import host_for

    host = host_for(pipe)
    for name in zoo.membranes():
        origin = zoo.membrane(name).provenance
        assert (origin.base_hash, origin.text_encoder_hash) == (host.base_hash(), host.text_encoder_hash())


def test_a_namesake_is_kept_by_the_gate(pipe):
    with spm.attach(pipe, ["zoo:cat", "zoo:tree"]) as guard:
        pipe(["a neon icon of a cat face", "a flat icon of a pine tree", "a 3d icon of a kitty"], num_inference_steps=1)
        gammas = {(row.prompt, row.concept): row.gamma for row in guard.trace}
    assert gammas["a neon icon of a cat face", "cat"] == 0
    assert gammas["a flat icon of a pine tree", "tree"] == 0
    assert gammas["a 3d icon of a kitty", "cat"] == 1


def test_a_shipped_membrane_erases_what_the_base_model_draws_and_nothing_else(pipe):
    judge = zoo.judge("emoji")
    prompts = [SPEC.caption("robot", style) for style in SPEC.styles] + [SPEC.caption("rose", "flat")]
    before = torch.stack([one.pixels for one in generate(pipe, prompts, steps=15)])
    after = torch.stack([one.pixels for one in generate(pipe, prompts, ["zoo:robot"], steps=15)])
    robot = judge.objects.index("robot")
    assert int((judge(before).object[:-1] == robot).sum()) >= 7
    assert int((judge(after).object[:-1] == robot).sum()) <= 1
    assert torch.equal(before[-1], after[-1])


def test_the_page_tells_the_figures():
    page = (Path(__file__).parents[2] / "docs" / "zoo.md").read_text(encoding="utf-8")
    kinds = {"object": "objects", "style": "styles", "broad": "broader word", "canary": "memorised pictures"}
    for kind, title in kinds.items():
        rows = [row for row in FOUND["membranes"].values() if row["kind"] == kind]
        cells = [title, str(len(rows))]
        for key in ("target", "twins", "other_axis", "kept_open"):
            pairs = [row[key] for row in rows if key in row]
            both = " → ".join(total(pair[when] for pair in pairs) for when in ("before", "after"))
            cells.append(both if pairs else "–")
        cells += [total(row[key] for row in rows) for key in ("kept_gated_identical", "opened")]
        assert f"| {' | '.join(cells)} |" in page
    assert f"with {len(FOUND['membranes'])} membranes" in page


def total(rates):
    counts = [(rate["successes"], rate["n"]) for rate in rates]
    return "/".join(str(sum(part)) for part in zip(*counts, strict=True))


def test_an_object_falls_to_nothing_that_another_shipped_membrane_erases():
    fallen = {name: row["surrogate"] for name, row in FOUND["membranes"].items() if row["kind"] == "object"}
    assert not set(fallen.values()) & set(fallen)
    apart = {name for name, surrogate in fallen.items() if SPEC.object(surrogate).group != SPEC.object(name).group}
    # All flowers and both creatures are erased.
    assert apart == {"rose", "tulip", "sunflower", "ghost", "robot"}


# Names


def test_names_resolve_and_close_ones_are_suggested():
    assert zoo.membrane("cat").concept == dataclasses.replace(enrich("cat", SPEC), surrogate="deer")
    assert to_bytes(load_membrane("zoo:cat face")) == to_bytes(zoo.membrane("cat face"))
    assert shipped_name("zoo:cat") == "cat"
    assert shipped_name("zoo/cat.safetensors") is None
    with pytest.raises(
        UnknownNameError, match=r"unknown zoo membrane 'robbot'; did you mean 'robot'.*spm zoo membranes"
    ):
        zoo.membrane("robbot")
    with pytest.raises(UnknownNameError, match="bundled model 'emojis'"):
        zoo.membrane("cat", "emojis")


def test_a_shipped_membrane_is_refused_on_another_model(pipe):
    weight = next(pipe.unet.parameters())
    with torch.no_grad():
        weight.add_(1.0)
    try:
        with pytest.raises(AttachError, match=r"zoo:cat was made on zoo:emoji, denoiser .*spm\.zoo\.membrane\('cat'\)"):
            spm.attach(pipe, ["zoo:cat"])
        spm.attach(pipe, zoo.membrane("cat")).detach()
    finally:
        with torch.no_grad():
            weight.sub_(1.0)


def test_a_damaged_pack_is_named(tmp_path, monkeypatch):
    folder = tmp_path / "emoji"
    folder.mkdir()
    shutil.copy(bundle.bundle_folder("emoji") / PACKED, folder)
    shutil.copy(bundle.bundle_folder("emoji") / FIGURES, folder)
    bundle.write_manifest(folder, {"name": "emoji"})
    monkeypatch.setattr(bundle, "ASSETS", tmp_path)
    assert zoo.membrane("cat").name == "cat"
    data = bytearray((folder / PACKED).read_bytes())
    data[-1] ^= 1
    (folder / PACKED).write_bytes(data)
    with pytest.raises(ZooError, match=r"membranes\.safetensors has SHA-256 .*reinstall"):
        zoo.membrane("cat")


def test_a_bundle_without_membranes_has_none(tmp_path):
    bundle.write_manifest(tmp_path, {"name": "bare"})
    assert zoo.membranes(tmp_path) == []
    with pytest.raises(UnknownNameError, match="unknown zoo membrane 'cat'; known: none"):
        zoo.membrane("cat", tmp_path)


# The command line


def test_the_list_shows_every_membrane_with_its_figures(cli):
    listing = cli("zoo", "membranes")
    assert listing.exit_code == 0, listing.output
    for name, row in FOUND["membranes"].items():
        line = next(line for line in listing.output.splitlines() if re.match(rf"{re.escape(name)}  ", line))
        after = row["target"]["after"]
        assert f"→ {after['successes']}/{after['n']}" in line
        assert row["kind"] in line
    assert f"Seed {FOUND['seed']}" in listing.output
    assert json.loads(cli("zoo", "membranes", "--json").output) == FOUND
    assert "--build" in cli("zoo", "membranes", "--out", "x").stderr


def test_a_name_works_wherever_a_membrane_file_does(cli, tmp_path):
    drawn = cli("generate", "a neon icon of a cat", "-m", "zoo:cat", "--steps", "1", "--out", "pictures")
    assert drawn.exit_code == 0, drawn.output
    facts = read_facts(next((tmp_path / "pictures").glob("*.png")))
    told = facts["membranes"] if isinstance(facts["membranes"], list) else json.loads(facts["membranes"])
    assert told[0]["file"] == "zoo:cat"
    assert told[0]["sha256"] == FOUND["membranes"]["cat"]["sha256"]
    shown = json.loads(cli("inspect", "zoo:cat", "--json").output)
    assert shown["sha256"] == FOUND["membranes"]["cat"]["sha256"]
    assert shown["provenance"]["metrics"]["target_after"] == FOUND["membranes"]["cat"]["target"]["after"]["value"]
    assert cli("export", "zoo:cat", "--out", "cat_lora.safetensors").exit_code == 0
    assert cli("merge", "zoo:cat", "zoo:neon", "--out", "both.safetensors").exit_code == 0
    card = cli("card", "zoo:cat face")
    assert card.exit_code == 0, card.output
    assert "cat-face.safetensors" in card.output
    assert "kept\\_open\\_after" in card.output
    assert spm.load(tmp_path / "both.safetensors").rank == 2


def test_a_membrane_may_be_kept_orthogonal_to_a_shipped_one(cli, tmp_path):
    done = cli("erase", "dog", "--preset", "instant", "--orthogonal-to", "zoo:cat", "--out", "dog.safetensors")
    assert done.exit_code == 0, done.output
    dog, cat = spm.load(tmp_path / "dog.safetensors"), zoo.membrane("cat")
    for site in cat.pairs:
        v, w = (m.pairs[site][1].flatten().double() for m in (dog, cat))
        assert abs(float(torch.nn.functional.cosine_similarity(v, w, dim=0))) < 1e-4


def test_an_unknown_name_is_one_sentence(cli):
    assert "did you mean 'cat'" in refusal(cli("generate", "a cat", "-m", "zoo:catt"))
    assert "did you mean 'neon'" in refusal(cli("inspect", "zoo:neno"))


def test_the_harness_takes_a_shipped_membrane(pipe):
    made = eraser("spm:zoo:cat").prepare(pipe, [enrich("cat", SPEC)], seed=0)
    assert [membrane.name for membrane in made.membranes] == ["cat"]
    with pytest.raises(UnknownNameError, match="zoo membrane 'cart'"):
        eraser("spm:zoo:cart").prepare(pipe, [enrich("cat", SPEC)], seed=0)


# Making them


def test_the_plan_names_every_kind_and_its_rows_are_fair():
    plan = PretunedPlan()
    wanted = subjects(SPEC, plan)
    assert [one.concept.name for one in wanted if one.kind == "object"] == list(OBJECTS)
    assert len({one.concept.name for one in wanted}) == len(wanted)
    broad = next(one for one in wanted if one.kind == "broad")
    assert set(broad.members) == set(SPEC.groups["insect"]) < set(broad.concept.names)
    for one in wanted:
        asked, kept = target_rows(SPEC, one, plan), kept_rows(SPEC, one, plan)
        assert (len(asked), len(kept)) == (plan.per_target, plan.per_kept)
        shown = {"style": "style", "canary": "canary"}.get(one.kind, "object")
        assert {getattr(row, shown) for row in asked} <= {*one.members}
        assert not {getattr(row, shown) for row in kept} & {*one.members}
        assert len({row.seed for row in asked}) == len(asked)
        assert kept == kept_rows(SPEC, one, plan)
    assert "cat face" in {row.object for row in kept_rows(SPEC, Subject("object", enrich("cat", SPEC), ("cat",)), plan)}


def test_plans_that_cannot_be_made_are_refused():
    with pytest.raises(UnknownNameError, match="'cat'"):
        subjects(SPEC, PretunedPlan(objects=("catt",)))
    with pytest.raises(UnknownNameError, match="'neon'"):
        subjects(SPEC, PretunedPlan(styles=("neno",)))
    with pytest.raises(ConfigError, match=r"'weapon'.*insect"):
        subjects(SPEC, PretunedPlan(broad=("weapon",)))


def test_a_stopped_build_goes_on_with_the_same_bytes(tmp_path):
    plan = PretunedPlan(
        objects=("robot", "key"), styles=(), broad=(), canaries=False, per_target=2, per_kept=1, steps=2, seed=3
    )

    class StoppedError(Exception):
        pass

    def stop(done, total):
        if done == 1:
            raise StoppedError

    with pytest.raises(StoppedError):
        build_pretuned("emoji", work=tmp_path / "work", plan=plan, out=tmp_path / "out", progress=stop)
    assert (tmp_path / "work" / "membranes" / "robot.json").is_file()
    assert not (tmp_path / "out").exists()
    began = (tmp_path / "work" / "membranes" / "robot.safetensors").stat().st_mtime_ns
    seen = []
    packed = build_pretuned(
        "emoji", work=tmp_path / "work", plan=plan, out=tmp_path / "out", progress=lambda *step: seen.append(step)
    )
    assert seen == [(0, 2), (1, 2), (2, 2)]
    assert (tmp_path / "work" / "membranes" / "robot.safetensors").stat().st_mtime_ns == began
    afresh = build_pretuned("emoji", work=tmp_path / "again", plan=plan, out=tmp_path / "afresh")
    assert packed.read_bytes() == afresh.read_bytes()
    figures = [json.loads((tmp_path / name / FIGURES).read_text()) for name in ("out", "afresh")]
    assert figures[0]["membranes"] == figures[1]["membranes"]
    assert sorted(spm.Bank(packed).names) == ["key", "robot"]
    with pytest.raises(ConfigError, match="another plan or model"):
        build_pretuned("emoji", work=tmp_path / "work", plan=PretunedPlan(objects=("key",)), out=tmp_path / "out")


def test_a_build_into_a_bundle_renews_its_manifest(tmp_path):
    folder = tmp_path / "emoji"
    shutil.copytree(bundle.bundle_folder("emoji"), folder)
    plan = PretunedPlan(
        objects=("robot", "key"), styles=(), broad=(), canaries=False, per_target=1, per_kept=1, steps=1
    )
    build_pretuned(folder, work=tmp_path / "work", plan=plan)
    bundle.verify(folder)
    assert zoo.membranes(folder) == ["key", "robot"]
    card = {name: value for name, value in zoo.info(folder).items() if name != "files"}
    assert card == {name: value for name, value in zoo.info("emoji").items() if name != "files"}
