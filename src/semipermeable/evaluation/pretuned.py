"""Make the membranes that come with a bundled model, judge each, and put them into the bundle: one command.

    spm zoo membranes --build

Every membrane is made (preset "instant"), rounded to half precision, written, and read back: what is judged is what is
shipped. An object falls to a sibling that no other of them erases, so that any of them may be used together. Bare
pictures are drawn once and shared: those of "cat" are before-pictures of its membrane, and kept pictures of others'.
Per membrane, over prompts and noise fixed by the seed:

- **target**: `per_target` prompts of the concept, bare and with the membrane held open; share judged as the concept,
  and as one of its near twins. A memorised picture counts as drawn where `CanaryJudge` knows it again.
- **other axis**: of the same pictures, the style of an object's or the object of a style's.
- **kept, open**: `per_kept` prompts of other concepts, near twins first, with the membrane held open on every row:
  object and style both right.
- **kept, gated**: the same prompts in one call with the target's, γ by the membrane's own gate, two denoising steps:
  pictures equal bit for bit to those of a bare call; and how many of the target's prompts open it.

Finished parts stay in a work folder, so that a stopped run goes on where it was.
"""

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from semipermeable import zoo
from semipermeable.concept import Concept
from semipermeable.equip import attach
from semipermeable.errors import ConfigError, OutputError
from semipermeable.evaluation.environment import describe_environment
from semipermeable.evaluation.judges.copies import CanaryJudge, canary_judge
from semipermeable.evaluation.pretuned_plan import (
    PretunedPlan,
    Row,
    Subject,
    kept_rows,
    subjects,
    target_rows,
    twins_of,
)
from semipermeable.evaluation.results import canonical, read_json, write_json
from semipermeable.files import load, save
from semipermeable.files.bank import pack
from semipermeable.files.native import digest
from semipermeable.generation import Drawing, Job, draw
from semipermeable.membrane import Json, Membrane
from semipermeable.rates import Rate, rate_of
from semipermeable.training import TrainConfig, erase
from semipermeable.training.many import file_name
from semipermeable.training.surrogates import resettled
from semipermeable.training.workshop import Workshop
from semipermeable.zoo.bundle import bundle_folder, read_manifest, write_manifest
from semipermeable.zoo.shipped import FIGURES, PACKED

__all__ = ["build_pretuned"]

_PRESET = "instant"
_QUICK_STEPS = 2
"""Denoising steps where only equality of bits is asked for: rows with γ = 0 must be equal at every one."""
_WEIGHTS = "pipeline/unet/diffusion_pytorch_model.safetensors"
_TOLD = ("per_target", "per_kept", "seed", "steps", "guidance")
"""Settings that a reader of the figures must know."""

Bar = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the judges saw in a picture."""

    object: str
    style: str
    canary: str | None


class _Studio:
    """A model with its judges, and what it drew bare."""

    def __init__(self, model: str | Path, plan: PretunedPlan, work: Path) -> None:
        self.spec = zoo.spec(model)
        self.pipe = zoo.load(model)
        self.workshop = Workshop(self.pipe)
        self.plan = plan
        self.work = work
        self._judge = zoo.judge(model)
        self._canaries: CanaryJudge | None = canary_judge(self.spec.name) if self.spec.canaries else None

    def bare(self, rows: Sequence[Row]) -> list[_Seen]:
        """Return what the judges see in bare pictures; those drawn before are looked up."""
        place = self.work / "bare.json"
        known: dict[str, Any] = read_json(place) if place.is_file() else {}
        missing = [row for row in dict.fromkeys(rows) if self._key(row) not in known]
        if missing:
            seen = zip(missing, self.seen(self.drawn(missing, self.plan.steps)), strict=True)
            known |= {self._key(row): dataclasses.asdict(one) for row, one in seen}
            write_json(place, known)
        return [_Seen(**known[self._key(row)]) for row in rows]

    def _key(self, row: Row) -> str:
        return f"{row.seed}: {row.prompt}"

    def drawn(self, rows: Sequence[Row], steps: int, guard: Any = None) -> list[Drawing]:
        """Draw rows with the pipeline as it is."""
        jobs = [Job(row.prompt, row.seed) for row in rows]
        return list(draw(self.pipe, jobs, guard=guard, steps=steps, guidance=self.plan.guidance))

    def seen(self, drawings: Sequence[Drawing]) -> list[_Seen]:
        """Judge pictures."""
        pixels = torch.stack([drawing.pixels for drawing in drawings])
        objects, styles = self._judge(pixels)
        copies: list[str | None] = [None] * len(drawings)
        if self._canaries is not None:
            copies = self._canaries.verdicts(self._canaries.similarities(pixels))
        things = zip(objects.tolist(), styles.tolist(), copies, strict=True)
        return [_Seen(self._judge.objects[a], self._judge.styles[b], copy) for a, b, copy in things]


def build_pretuned(
    model: str | Path,
    *,
    work: Path,
    plan: PretunedPlan | None = None,
    out: Path | None = None,
    progress: Bar | None = None,
) -> Path:
    """Make and judge all membranes of a bundled model, and put them into its bundle.

    Args:
        model: a bundled model, or a bundle's folder.
        work: folder of intermediate results, made if missing; of the same plan and model.
        plan: what to make; None is the plan of the shipped ones.
        out: folder for the packed file and its figures; None puts them into the bundle and renews its manifest.
        progress: called with membranes done and in all.

    Returns:
        The packed file.

    Raises:
        ConfigError: if the work folder belongs to another plan or model.
        OutputError: if a file cannot be written.
    """
    chosen = plan or PretunedPlan()
    _claim(work, model, chosen)
    studio = _Studio(model, chosen, work)
    wanted = _settled(studio, subjects(studio.spec, chosen))
    figures: dict[str, dict[str, Json]] = {}
    for number, subject in enumerate(wanted):
        if progress is not None:
            progress(number, len(wanted))
        figures[subject.concept.name] = _finished(studio, subject)
    if progress is not None:
        progress(len(wanted), len(wanted))
    how = {name: value for name, value in dataclasses.asdict(chosen).items() if name in _TOLD}
    content = {**how, "environment": describe_environment(), "membranes": dict(sorted(figures.items()))}
    return _published(studio, model, wanted, content, out)


def _claim(work: Path, model: str | Path, plan: PretunedPlan) -> None:
    """Make the work folder this plan's."""
    weights = read_manifest(bundle_folder(model))["files"][_WEIGHTS]["sha256"]
    mine = {"plan": dataclasses.asdict(plan), "unet": weights}
    place = work / "plan.json"
    if place.is_file() and canonical(read_json(place)) != canonical(mine):
        raise ConfigError(f"{str(work)!r} holds the work of another plan or model; remove it, or choose another folder")
    try:
        (work / "membranes").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"folder {str(work)!r} cannot be made: {error}; choose another") from error
    write_json(place, mine)


def _settled(studio: _Studio, wanted: Sequence[Subject]) -> list[Subject]:
    """Return subjects with what each falls to; a broader word stands apart: its members may fall to each other."""
    apart = [subject.concept for subject in wanted if subject.kind != "broad"]
    found = {one.name: one for one in resettled(studio.workshop, apart, TrainConfig.from_preset(_PRESET))}
    return [dataclasses.replace(one, concept=found.get(one.concept.name, one.concept)) for one in wanted]


def _finished(studio: _Studio, subject: Subject) -> dict[str, Json]:
    """Return the figures of a membrane; it is made and judged unless it is there."""
    place = studio.work / "membranes" / file_name(subject.concept)
    story = place.with_suffix(".json")
    config = TrainConfig.from_preset(_PRESET)
    settings = config.to_json()
    if story.is_file() and place.is_file():
        found = read_json(story)
        if found["sha256"] == digest(load(place)) and found["settings"] == settings:
            return found["figures"]
    pipe, seed = studio.pipe, studio.plan.seed
    made = erase(pipe, subject.concept, config=config, seed=seed, workshop=studio.workshop, progress=False)
    save(_halved(made), place)
    membrane = load(place)
    figures = {"kind": subject.kind, **_described(membrane.concept), **_judged(studio, subject, membrane)}
    write_json(story, {"sha256": digest(membrane), "settings": settings, "figures": figures})
    return figures


def _halved(membrane: Membrane) -> Membrane:
    """Return a membrane with its pairs in half precision."""
    pairs = {site: (u.half(), v.half()) for site, (u, v) in membrane.pairs.items()}
    return dataclasses.replace(membrane, pairs=pairs)


def _described(concept: Concept) -> dict[str, Json]:
    return {
        "aliases": list(concept.aliases),
        "surrogate": concept.surrogate,
        "keep": list(concept.keep),
        "recipe": {"preset": _PRESET},
    }


def _judged(studio: _Studio, subject: Subject, membrane: Membrane) -> dict[str, Json]:
    """Return all figures of a membrane; see the module."""
    spec, plan = studio.spec, studio.plan
    targets, kept = target_rows(spec, subject, plan), kept_rows(spec, subject, plan)
    before, kept_before = studio.bare(targets), studio.bare(kept)
    with attach(studio.pipe, membrane, "open"):
        seen = studio.seen(studio.drawn([*targets, *kept], plan.steps))
    after, kept_after = seen[: len(targets)], seen[len(targets) :]
    twins = twins_of(spec, subject)

    def is_target(one: _Seen) -> bool:
        shown = {"style": one.style, "canary": one.canary}.get(subject.kind, one.object)
        return shown in subject.members

    def is_twin(one: _Seen) -> bool:
        return one.object in twins and one.object not in subject.members

    pairs = {"target": _both(before, after, is_target)}
    if twins:
        pairs["twins"] = _both(before, after, is_twin)
    if subject.kind != "canary":
        pairs["other_axis"] = {
            when: _share(_other(subject, row, one) for row, one in zip(targets, part, strict=True))
            for when, part in (("before", before), ("after", after))
        }
    pairs["kept_open"] = {
        when: _share(_right(row, one) for row, one in zip(kept, part, strict=True))
        for when, part in (("before", kept_before), ("after", kept_after))
    }
    return {**pairs, **_gated(studio, membrane, targets, kept)}


def _gated(studio: _Studio, membrane: Membrane, targets: Sequence[Row], kept: Sequence[Row]) -> dict[str, Json]:
    """Return how many kept pictures are equal bit for bit, and how many target prompts open the gate."""
    rows = [*targets, *kept]
    bare = studio.drawn(rows, _QUICK_STEPS)
    with attach(studio.pipe, membrane) as guard:
        gated = studio.drawn(rows, _QUICK_STEPS, guard)
    same = [torch.equal(old.pixels, new.pixels) for old, new in zip(bare, gated, strict=True)]
    return {
        "kept_gated_identical": _share(same[len(targets) :]),
        "opened": _share(drawing.gamma[membrane.name] == 1 for drawing in gated[: len(targets)]),
    }


def _right(row: Row, one: _Seen) -> bool:
    if row.canary is not None:
        return one.canary == row.canary
    return (one.object, one.style) == (row.object, row.style)


def _other(subject: Subject, row: Row, one: _Seen) -> bool:
    return one.object == row.object if subject.kind == "style" else one.style == row.style


def _both(before: Sequence[_Seen], after: Sequence[_Seen], hit: Callable[[_Seen], bool]) -> dict[str, Json]:
    return {"before": _share(map(hit, before)), "after": _share(map(hit, after))}


def _share(hits: Any) -> Json:
    rate: Rate = rate_of(hits)
    low, high = rate.interval
    return {
        "successes": rate.successes,
        "n": rate.n,
        "value": round(rate.value, 4),
        "wilson95": [round(low, 4), round(high, 4)],
    }


def _published(
    studio: _Studio, model: str | Path, wanted: Sequence[Subject], content: dict[str, Any], out: Path | None
) -> Path:
    """Pack the membranes that are wanted, each with its figures in its story, and write figures and manifest."""
    bundle = bundle_folder(model)
    chosen = studio.work / "chosen"
    shutil.rmtree(chosen, ignore_errors=True)
    chosen.mkdir()
    for subject in wanted:
        name, row = file_name(subject.concept), content["membranes"][subject.concept.name]
        membrane = load(studio.work / "membranes" / name)
        metrics = {**membrane.provenance.metrics, **_metrics(row)}
        told = dataclasses.replace(membrane, provenance=dataclasses.replace(membrane.provenance, metrics=metrics))
        save(told, chosen / name)
        row |= {"gate": None if told.gate is None else told.gate.kind}
        row |= {"bytes": (chosen / name).stat().st_size, "sha256": digest(told)}
    folder = bundle if out is None else out
    folder.mkdir(parents=True, exist_ok=True)
    pack(chosen, folder / PACKED)
    write_json(folder / FIGURES, content)
    if out is None:
        manifest = read_manifest(bundle)
        write_manifest(bundle, {name: value for name, value in manifest.items() if name != "files"})
    return folder / PACKED


def _metrics(row: dict[str, Any]) -> dict[str, float]:
    """Return a membrane's figures as its card shows them: shares, in [0, 1]."""
    found: dict[str, float] = {}
    for name in ("target", "twins", "other_axis", "kept_open"):
        found |= {f"{name}_{when}": row[name][when]["value"] for when in ("before", "after") if name in row}
    return found | {name: row[name]["value"] for name in ("kept_gated_identical", "opened")}
