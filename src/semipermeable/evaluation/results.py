"""What a run leaves on disk, and how it is read back.

    OUT/emoji-objects@1/benchmark.json                    what was asked for, in full
    OUT/emoji-objects@1/uce/shards/cat-seed0.json         one per case and seed, written when its pictures are
    OUT/emoji-objects@1/uce/pictures/cat/seed0/*.png      the pictures, named by row and prompt
    OUT/emoji-objects@1/uce/result.json                   verdicts and figures; costs and environment apart

Everything in `result.json` but `costs` and `environment` is the same for the same seeds, commit and machine.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semipermeable.errors import ConfigError
from semipermeable.evaluation.benchmarks.plan import Benchmark, Case, Row
from semipermeable.files.atomic import write_atomically
from semipermeable.membrane import Json

__all__ = [
    "Costs",
    "Place",
    "Shard",
    "canonical",
    "file_slug",
    "picture_name",
    "read_benchmark",
    "read_json",
    "read_shard",
    "shards_of",
    "short_hash",
    "write_benchmark",
    "write_json",
]


def canonical(content: Any) -> str:
    """Return JSON with sorted keys: the same text for the same content."""
    return json.dumps(content, sort_keys=True, ensure_ascii=False)


def short_hash(content: Any) -> str:
    """Return the first 16 hex digits of the SHA-256 of some JSON data."""
    return hashlib.sha256(canonical(content).encode()).hexdigest()[:16]


def file_slug(text: str, longest: int = 60) -> str:
    """Return a file name for a text; texts that lose something on the way get a hash."""
    slug = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if slug.replace("-", " ") == text.replace("-", " ") and len(slug) <= longest:
        return slug
    return f"{slug[:longest].strip('-')}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where one eraser's part of a run lies.

    Args:
        root: folder of the benchmark, `OUT/name@version`.
        eraser: spec string.
    """

    root: Path
    eraser: str

    @property
    def folder(self) -> Path:
        """Folder of the eraser."""
        return self.root / file_slug(self.eraser)

    @property
    def result(self) -> Path:
        """Its figures."""
        return self.folder / "result.json"

    def shard(self, case: str, seed: int) -> Path:
        """Return the record of one shard."""
        return self.folder / "shards" / f"{case}-seed{seed}.json"

    def pictures(self, case: str, seed: int) -> Path:
        """Return the folder of one shard's pictures."""
        return self.folder / "pictures" / case / f"seed{seed}"

    def picture(self, case: str, seed: int, row: Row) -> Path:
        """Return one picture."""
        return self.pictures(case, seed) / picture_name(row)


def picture_name(row: Row) -> str:
    """Return the file name of a row's picture."""
    return f"{row.number:04d}-{file_slug(row.prompt)}.png"


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """What one shard took."""

    prepare_seconds: float
    """Of training or solving, shared by all seeds of a case."""
    draw_seconds: float
    """Of drawing all pictures of the shard."""
    draw_busy_seconds: float
    """The same in processor time (wall time on a GPU), for ratios that a busy machine does not spoil."""
    pictures: int
    """How many."""
    prepare_peak_bytes: int
    """Peak memory while preparing."""
    draw_peak_bytes: int
    """Peak memory while drawing."""
    stored_bytes: int
    """What must be kept beside the model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One case and one seed, drawn by one eraser."""

    configuration: str
    """Hash of benchmark, weights, eraser and training seed."""
    eraser: str
    """Spec string."""
    gated: bool
    """Whether it decides prompt by prompt."""
    case: str
    """Name of the case."""
    seed: int
    """Seed index."""
    pixels: tuple[str, ...]
    """Hash of each picture's fp32 pixels, in the order of the case's rows."""
    erasure: Mapping[str, Json]
    """Settings of the erasure."""
    numerics: Mapping[str, Json]
    """Device, threads and versions: where they are equal, the same work gives the same bits."""
    costs: Costs
    """Seconds, memory, bytes."""
    environment: Mapping[str, Json]
    """Commit, versions, hardware."""
    openings: tuple[tuple[tuple[str, float, str], ...], ...] | None = None
    """What the gate opened on each row: concept, γ, reason; None without a gate."""


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all; folders are made.

    Raises:
        OutputError: if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        ConfigError: if the file cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{str(path)!r} cannot be read ({error}); delete it and run the benchmark again") from error


def read_shard(path: Path) -> Shard:
    """Read a shard's record.

    Raises:
        ConfigError: if it is not one.
    """
    content: Any = read_json(path)
    try:
        fields: dict[str, Any] = {
            **content,
            "pixels": tuple(content["pixels"]),
            "costs": Costs(**content["costs"]),
            "openings": _openings(content.get("openings")),
        }
        return Shard(**fields)
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{str(path)!r} is no shard of this version ({error}); delete it and run again") from error


def _openings(found: Any) -> tuple[tuple[tuple[str, float, str], ...], ...] | None:
    return None if found is None else tuple(tuple((name, g, why) for name, g, why in row) for row in found)


def read_benchmark(path: Path) -> Benchmark:
    """Read the benchmark of a run back from its `benchmark.json`.

    Raises:
        ConfigError: if it cannot be read, or its content does not have the digest that it names.
    """
    content: Any = read_json(path)
    try:
        found = Benchmark.from_json(content["benchmark"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{str(path)!r} is no benchmark of this version ({error!r})") from error
    if found.digest != content["digest"]:
        raise ConfigError(f"{str(path)!r} was changed: its content has digest {found.digest}, not {content['digest']}")
    return found


def write_benchmark(path: Path, benchmark: Benchmark) -> None:
    """Write a benchmark in full beside its results.

    Raises:
        ConfigError: if the folder holds results of another benchmark, or of the same name on another model.
    """
    if path.exists():
        found = read_json(path).get("digest")
        if found != benchmark.digest:
            raise ConfigError(
                f"{str(path.parent)!r} holds results of {benchmark.key} with digest {found}, and here it has "
                f"{benchmark.digest}: the model's spec or the benchmark changed; choose another --out"
            )
        return
    write_json(path, {"digest": benchmark.digest, "benchmark": dataclasses.asdict(benchmark)})


def shards_of(place: Place, cases: Sequence[Case], seeds: int) -> dict[tuple[str, int], Shard]:
    """Return those finished shards that a run asks for, in order."""
    wanted = [(case.name, seed) for case in cases for seed in range(seeds)]
    return {key: read_shard(place.shard(*key)) for key in wanted if place.shard(*key).exists()}
