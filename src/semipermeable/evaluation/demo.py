"""The demo: erase an object and a style from the bundled model, equip both, draw, judge, and write a report.

All pictures are drawn twice in calls of the same shape and order, bare and with both membranes equipped; unrelated ones
are compared bit by bit. The unrelated prompts are drawn twice more, with one membrane held fully open on every row: the
gate must not hide a blunt membrane.
"""

import json
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from semipermeable import zoo
from semipermeable.equip import attach
from semipermeable.evaluation.demo_bars import LEAST_N, verdicts_of
from semipermeable.evaluation.demo_prompts import Cell, Role, mixed, plan_cells
from semipermeable.evaluation.environment import describe_environment
from semipermeable.evaluation.gate_check import check_gate, fresh_wordings, other_captions
from semipermeable.evaluation.records import BeforeAfter, Combined, ConceptFigures, DemoResult
from semipermeable.evaluation.report import gallery_grid, write_report
from semipermeable.files import save
from semipermeable.generation import Drawing, draw, load_model, staged_folder
from semipermeable.generation.png import file_digest
from semipermeable.membrane import Membrane
from semipermeable.rates import Rate, rate_of
from semipermeable.training import TrainConfig, erase

__all__ = ["DemoPlan", "run_demo"]

Bar = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
"""Gives a progress bar of that title: called with steps done and in all."""


@dataclass(frozen=True, kw_only=True)
class DemoPlan:
    """What the demo does."""

    model: str = "emoji"
    """Bundled model."""
    erased_object: str = "cat"
    """An object of the model."""
    erased_style: str = "neon"
    """A style of the model."""
    seed: int = 0
    """Of training and of all noise."""
    device: str = "cpu"
    """Torch device."""
    per_target: int = LEAST_N
    """Pictures behind each target figure."""
    both: int = 24
    """Pictures that ask for both concepts."""
    kept: int | None = None
    """Unrelated pictures; None is one for each other object."""
    steps: int = 20
    """DDIM steps."""
    guidance: float = 4.0
    """Classifier-free guidance."""
    batch_size: int = 32
    """Pictures in one call."""
    config: TrainConfig = field(default_factory=TrainConfig)
    """Training settings; the default is the preset "fast"."""

    @property
    def is_quick(self) -> bool:
        """Whether it draws fewer pictures than the bars ask for."""
        return self.per_target < LEAST_N

    @classmethod
    def quick(cls, *, seed: int = 0, device: str = "cpu") -> "DemoPlan":
        """Return a plan with a sixth of the pictures."""
        return cls(seed=seed, device=device, per_target=16, both=8, kept=24)


@dataclass(frozen=True, eq=False)
class _Erased:
    """A membrane and the story of its training."""

    kind: Literal["object", "style"]
    membrane: Membrane
    seconds: float
    path: Path


@dataclass(frozen=True, eq=False)
class _Judged:
    """A drawing with what the judge saw."""

    cell: Cell
    drawing: Drawing
    object: str
    style: str

    @property
    def right(self) -> bool:
        """Whether object and style are what was asked for."""
        return (self.object, self.style) == (self.cell.object, self.cell.style)


@dataclass(frozen=True, eq=False)
class _Pictures:
    """All judged pictures, in one order; `opened` holds the unrelated ones by open membrane."""

    before: list[_Judged]
    after: list[_Judged]
    opened: Mapping[str, list[_Judged]]

    def pair(self, role: Role, hit: Callable[[_Judged], bool]) -> BeforeAfter:
        """Return a figure over one of the sets."""
        return BeforeAfter(_share(self.before, role, hit), _share(self.after, role, hit))


def _share(pictures: Sequence[_Judged], role: Role, hit: Callable[[_Judged], bool]) -> Rate:
    return rate_of(hit(picture) for picture in pictures if picture.cell.role == role)


class _Clock:
    """Wall seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Generator[None, None, None]:
        began = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began


def run_demo(plan: DemoPlan, out: Path, *, bar: Bar, show_training: bool = True) -> DemoResult:
    """Run the demo and write report.html, before_after.png, result.json and both membranes.

    Args:
        plan: what to do.
        out: folder; files of the same names are replaced when everything is done.
        bar: gives progress bars.
        show_training: show the training's own progress bar.

    Returns:
        The figures and verdicts; a missed bar is a verdict, not an exception.

    Raises:
        OutputError: if the folder cannot be written.
    """
    clock = _Clock()
    with staged_folder(out) as stage:
        with clock.phase("load"):
            pipe = load_model(plan.model, device=plan.device, dtype="fp32")
        erased: list[_Erased] = []
        for name, kind in ((plan.erased_object, "object"), (plan.erased_style, "style")):
            with clock.phase(f"erase {name}"):
                erased.append(_erase(pipe, plan, name, kind, stage, show_training))
        with clock.phase("draw and judge"):
            pictures = _draw_all(pipe, plan, [one.membrane for one in erased], bar)
        with clock.phase("gate"):
            figures = tuple(_figures(pipe, plan, one, pictures) for one in erased)
        result = _result(plan, figures, pictures, clock)
        chosen = _gallery(pictures, plan)
        gallery_grid(chosen).save(stage / "before_after.png")
        (stage / "result.json").write_text(json.dumps(result.to_json(), indent=1, ensure_ascii=False), encoding="utf-8")
        write_report(result, chosen, stage / "report.html")
    return result


def _erase(pipe: Any, plan: DemoPlan, name: str, kind: Any, stage: Path, shown: bool) -> _Erased:
    began = time.monotonic()
    membrane = erase(pipe, name, seed=plan.seed, config=plan.config, progress=shown)
    seconds = time.monotonic() - began
    path = stage / f"{name.replace(' ', '-')}.safetensors"
    save(membrane, path)
    return _Erased(kind, membrane, seconds, path)


def _draw_all(pipe: Any, plan: DemoPlan, membranes: Sequence[Membrane], bar: Bar) -> _Pictures:
    spec = zoo.spec(plan.model)
    cells = plan_cells(
        spec,
        plan.erased_object,
        plan.erased_style,
        per_target=plan.per_target,
        both=plan.both,
        kept=plan.kept,
        seed=plan.seed,
    )
    cells = mixed(cells, plan.seed)
    kept = [cell for cell in cells if cell.role == "kept"]
    before = _pass(pipe, plan, cells, (), "transport", "drawing bare", bar)
    after = _pass(pipe, plan, cells, membranes, "transport", "drawing with both membranes", bar)
    opened = {
        one.name: _pass(pipe, plan, kept, (one,), "open", f"drawing with {one.name!r} open everywhere", bar)
        for one in membranes
    }
    return _Pictures(before, after, opened)


def _pass(
    pipe: Any, plan: DemoPlan, cells: Sequence[Cell], membranes: Sequence[Membrane], rule: str, title: str, bar: Bar
) -> list[_Judged]:
    jobs = [cell.job for cell in cells]
    how: dict[str, Any] = {"steps": plan.steps, "guidance": plan.guidance, "batch_size": plan.batch_size}
    with bar(title) as report:
        if membranes:
            with attach(pipe, membranes, rule) as guard:
                drawings = list(draw(pipe, jobs, guard=guard, progress=report, **how))
        else:
            drawings = list(draw(pipe, jobs, progress=report, **how))
    judge = zoo.judge(plan.model)
    objects, styles = judge(torch.stack([drawing.pixels for drawing in drawings]))
    seen = zip(objects.tolist(), styles.tolist(), strict=True)
    return [
        _Judged(cell, drawing, judge.objects[thing], judge.styles[style])
        for cell, drawing, (thing, style) in zip(cells, drawings, seen, strict=True)
    ]


def _figures(pipe: Any, plan: DemoPlan, one: _Erased, pictures: _Pictures) -> ConceptFigures:
    spec, name = zoo.spec(plan.model), one.membrane.name
    twins = spec.object(name).twins if one.kind == "object" else ()
    namesakes = tuple(twin for twin in twins if set(name.split()) & set(twin.split()))
    names = (*one.membrane.concept.names,)
    wordings = fresh_wordings(names, one.kind)
    gate = check_gate(pipe, one.membrane, wordings, other_captions(spec, names))

    def seen(picture: _Judged, *also: str) -> bool:
        return (picture.object if one.kind == "object" else picture.style) in (name, *also)

    def other_right(picture: _Judged) -> bool:
        cell = picture.cell
        return picture.style == cell.style if one.kind == "object" else picture.object == cell.object

    kept = pictures.pair("kept", lambda picture: picture.right)
    return ConceptFigures(
        name=name,
        kind=one.kind,
        twins=twins,
        train_seconds=one.seconds,
        steps=plan.config.num_steps,
        membrane_bytes=one.path.stat().st_size,
        membrane_sha256=file_digest(one.path),
        target=pictures.pair(one.kind, seen),
        target_or_namesake=pictures.pair(one.kind, lambda picture: seen(picture, *namesakes)),
        target_or_twin=pictures.pair(one.kind, lambda picture: seen(picture, *twins)),
        other_axis=pictures.pair(one.kind, other_right),
        kept=kept,
        kept_open=BeforeAfter(kept.before, _share(pictures.opened[name], "kept", lambda picture: picture.right)),
        wordings_opened=gate.opened,
        neighbours_closed=gate.closed,
        wordings_missed=gate.missed,
        neighbours_opened=gate.wrongly_opened,
    )


def _result(plan: DemoPlan, figures: tuple[ConceptFigures, ...], pictures: _Pictures, clock: _Clock) -> DemoResult:
    both = zip(pictures.before, pictures.after, strict=True)
    same = [torch.equal(old.drawing.pixels, new.drawing.pixels) for old, new in both if old.cell.role == "kept"]
    combined = Combined(
        object_seen=pictures.pair("both", lambda picture: picture.object == plan.erased_object),
        style_seen=pictures.pair("both", lambda picture: picture.style == plan.erased_style),
        kept=figures[0].kept,
    )
    result = DemoResult(
        model=plan.model,
        device=plan.device,
        seed=plan.seed,
        quick=plan.is_quick,
        concepts=figures,
        combined=combined,
        unrelated_rows=len(same),
        unrelated_equal=sum(same),
        seconds={**clock.seconds, "total": sum(clock.seconds.values())},
        environment=describe_environment(),
    )
    return replace(result, verdicts=verdicts_of(result))


def _gallery(pictures: _Pictures, plan: DemoPlan) -> list[tuple[Drawing, Drawing]]:
    """Choose pairs for people to look at: the first of each set by number, never by outcome."""
    twins = zoo.spec(plan.model).object(plan.erased_object).twins
    both = sorted(zip(pictures.before, pictures.after, strict=True), key=lambda pair: pair[0].cell.job.seed)
    chosen: list[tuple[_Judged, _Judged]] = []
    for role, number in (("object", 4), ("style", 4), ("both", 1), ("kept", 3)):
        of_role = [pair for pair in both if pair[0].cell.role == role]
        far = [pair for pair in of_role if pair[0].cell.object not in twins]
        pool = far if role == "style" else [*of_role[:2], *far] if role == "kept" else of_role
        chosen += pool[:number]
    return [(old.drawing, new.drawing) for old, new in chosen]
