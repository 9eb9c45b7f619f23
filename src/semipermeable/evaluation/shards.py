"""Draw the shards of one erasure and write them down.

Cases that erase the same concepts share one erasure: it is prepared once for all of them.
"""

import dataclasses
import hashlib
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from semipermeable.concept import Concept
from semipermeable.evaluation.benchmarks.plan import Case, Row, Sampler
from semipermeable.evaluation.costs import Meter, metered
from semipermeable.evaluation.environment import describe_environment
from semipermeable.evaluation.erasers.artefacts import preparation
from semipermeable.evaluation.erasers.gates import openings_of
from semipermeable.evaluation.erasers.protocol import Draw, Eraser, Erasure
from semipermeable.evaluation.results import Costs, Place, Shard, picture_name, write_json
from semipermeable.generation import Drawing, Job, write_png
from semipermeable.membrane import Json

__all__ = ["Unit", "draw_rows", "draw_shards"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """One erasure and the shards that are still to be drawn with it."""

    eraser: str
    """Spec string."""
    shards: tuple[tuple[Case, int], ...]
    """Cases, all of the same concepts, with seed indices."""
    sampler: Sampler
    """How pictures are drawn."""
    train_seed: int
    """Of training or solving."""
    device: str
    """Torch device."""
    dtype: str
    """Of the model."""
    configuration: str
    """Hash under which shards may be joined."""

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """What is erased."""
        return self.shards[0][0].concepts

    @property
    def num_pictures(self) -> int:
        """Pictures to draw."""
        return sum(len(case.rows) for case, _ in self.shards)

    def split(self, parts: int) -> "list[Unit]":
        """Return units of about the same number of shards, at most `parts`; each prepares the erasure for itself."""
        size = math.ceil(len(self.shards) / parts)
        starts = range(0, len(self.shards), size)
        return [dataclasses.replace(self, shards=self.shards[start : start + size]) for start in starts]


def draw_shards(unit: Unit, eraser: Eraser, pipe: Any, root: Path) -> Iterator[int]:
    """Prepare an erasure, draw its shards and write them.

    Args:
        unit: what to draw.
        eraser: of the unit's name.
        pipe: the pipeline; it is left as it was.
        root: folder of the benchmark's results.

    Yields:
        the number of pictures after each call of the pipeline.

    Raises:
        OutputError: if something cannot be written.
    """
    with metered(unit.device) as preparing:
        erasure = eraser.prepare(pipe, unit.concepts, seed=unit.train_seed)
    preparing = preparation(erasure, preparing)
    place, environment = Place(root, unit.eraser), describe_environment()
    for case, seed in unit.shards:
        drawn: list[_Drawn] = []
        with erasure.applied(pipe) as draw, metered(unit.device) as drawing:
            for batch in draw_rows(draw, case.rows, seed, unit.sampler):
                drawn += [_Drawn.of(picture) for picture in batch]
                yield len(batch)
        shard = _record(unit, eraser, erasure, (case, seed), drawn, (preparing, drawing), environment)
        opened = openings_of(erasure, pipe, [row.prompt for row in case.rows])
        if opened is not None:
            shard = dataclasses.replace(shard, openings=tuple(map(tuple, opened)))
        _write_pictures(place.pictures(case.name, seed), case.rows, seed, drawn, shard)
        write_json(place.shard(case.name, seed), asdict(shard))


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A picture in a quarter of the room that its floats would take, and what tells it from any other."""

    image: Image
    digest: str

    @classmethod
    def of(cls, pixels: Tensor) -> "_Drawn":
        return cls(Drawing(Job("", 0), pixels).image, _digest(pixels))


def draw_rows(draw: Draw, rows: Sequence[Row], seed: int, sampler: Sampler) -> Iterator[Tensor]:
    """Draw rows in their order, in calls of the sampler's shape.

    Args:
        draw: draws like a diffusers pipeline.
        rows: what to draw.
        seed: index of the noise.
        sampler: steps, guidance, batch size.

    Yields:
        pictures of one call, shape (rows, 3, height, width), in [0, 1], fp32 on the CPU.
    """
    for start in range(0, len(rows), sampler.batch_size):
        chunk = rows[start : start + sampler.batch_size]
        drawn = draw(
            [row.prompt for row in chunk],
            negative_prompt=[row.negative for row in chunk],
            num_inference_steps=sampler.steps,
            guidance_scale=sampler.guidance,
            generator=[torch.Generator().manual_seed(row.noise(seed)) for row in chunk],
            output_type="pt",
        )
        yield drawn.images.float().cpu()


def _record(
    unit: Unit,
    eraser: Eraser,
    erasure: Erasure,
    which: tuple[Case, int],
    drawn: Sequence[_Drawn],
    meters: tuple[Meter, Meter],
    environment: Mapping[str, Json],
) -> Shard:
    (case, seed), (preparing, drawing) = which, meters
    versions: Any = environment["versions"]
    costs = Costs(
        prepare_seconds=preparing.seconds,
        draw_seconds=drawing.seconds,
        draw_busy_seconds=drawing.busy_seconds,
        pictures=len(drawn),
        prepare_peak_bytes=preparing.peak_bytes,
        draw_peak_bytes=drawing.peak_bytes,
        stored_bytes=erasure.stored_bytes,
    )
    return Shard(
        configuration=unit.configuration,
        eraser=unit.eraser,
        gated=eraser.gated,
        case=case.name,
        seed=seed,
        pixels=tuple(one.digest for one in drawn),
        # A worker on another machine knows the files of a spec string by other paths.
        erasure={**erasure.config, "eraser": unit.eraser},
        numerics={
            "device": unit.device,
            "dtype": unit.dtype,
            "processor": environment["processor"],
            "gpus": environment["gpus"],
            "threads": environment["threads"],
            "torch": versions["torch"],
            "diffusers": versions["diffusers"],
        },
        costs=costs,
        environment=environment,
    )


def _digest(picture: Tensor) -> str:
    return hashlib.sha256(picture.contiguous().numpy().tobytes()).hexdigest()[:16]


def _write_pictures(folder: Path, rows: Sequence[Row], seed: int, drawn: Sequence[_Drawn], shard: Shard) -> None:
    """Write a shard's pictures; a folder left by a killed run is replaced."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=".spm-", dir=folder.parent))
    try:
        for row, one in zip(rows, drawn, strict=True):
            write_png(one.image, _facts(row, seed, shard), stage / picture_name(row))
        stage.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        stage.replace(folder)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _facts(row: Row, seed: int, shard: Shard) -> Mapping[str, Any]:
    return {
        "prompt": row.prompt,
        "negative_prompt": row.negative,
        "seed": row.noise(seed),
        "eraser": shard.eraser,
        "erased": shard.case,
        "tag": row.tag,
        "configuration": shard.configuration,
    }
