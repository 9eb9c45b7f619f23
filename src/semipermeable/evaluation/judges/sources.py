"""Where the judges of a run come from, and opening them: everything wrong is found before the first picture."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from semipermeable import zoo
from semipermeable.errors import ConfigError
from semipermeable.evaluation.benchmarks.plan import Benchmark
from semipermeable.evaluation.judges.copies import canary_judge, descriptor_judge
from semipermeable.evaluation.judges.networks import (
    LPIPS_BACKBONES,
    SSCD_SIDE,
    Classifiers,
    HubClip,
    ImageClassifier,
    inception_features,
    perceptual_network,
    script_file,
    sscd_descriptors,
)
from semipermeable.evaluation.judges.nudity import NudeNet
from semipermeable.evaluation.judges.panel import Panel, RealPictures
from semipermeable.evaluation.judges.pictures import picture_files, read_batches
from semipermeable.evaluation.scores import Moments, moments_of
from semipermeable.membrane import Json

__all__ = ["JudgeSources", "open_panel"]

_SIDE = 512
"""Pixels a side to which real pictures are scaled before Inception: those of Stable Diffusion's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeSources:
    """Where judges lie; None or "" leaves that judge out."""

    clip: str = ""
    """CLIP of `transformers`: hub id or folder."""
    classifier: str = ""
    """Image classifier of `transformers` that sees the benchmark's objects: hub id or folder."""
    style_classifier: str = ""
    """The same for styles."""
    inception: str = ""
    """TorchScript of Inception: file, or `OWNER/REPO/FILE` of the hub."""
    real_images: Path | None = None
    """Folder of real pictures; of the memorised ones for benchmarks that name them."""
    sscd: str = ""
    """TorchScript of SSCD: file, or `OWNER/REPO/FILE` of the hub."""
    lpips: str = ""
    """LPIPS: one of `LPIPS_BACKBONES` from the package `lpips`, or its TorchScript as for the others."""

    def given(self, judge: str) -> bool:
        """Return whether a judge, under the name of its option, has a source."""
        return bool(getattr(self, judge.replace("-", "_")))

    def fetched(self) -> "JudgeSources":
        """Return the same with every script as a file of this machine.

        Raises:
            ConfigError: if one is neither here nor on the hub.
        """
        found: dict[str, str] = {}
        for name in ("inception", "sscd", "lpips"):
            source: str = getattr(self, name)
            if source and source not in LPIPS_BACKBONES:
                found[name] = str(script_file(source))
        return replace(self, **found)


def open_panel(benchmark: Benchmark, sources: JudgeSources) -> Panel:
    """Return the judges of a benchmark.

    Args:
        benchmark: says which judges it needs, and which classes they must know.
        sources: where those of real models lie; the judges of a bundled model come with it.

    Raises:
        ConfigError: if a judge that it needs is not given, or one cannot be opened.
        UnknownNameError: if a classifier does not know a class that is asked for.
        ZooError: if a file of a bundled model is damaged.
    """
    if benchmark.model in zoo.names():
        return _bundled_panel(benchmark, sources)
    lacking = [name for name in benchmark.judges if name != "nudenet" and not sources.given(name)]
    if lacking:
        raise ConfigError(f"{benchmark.key} needs --{' and --'.join(lacking)}; docs/benchmarks says what each is")
    sources = sources.fetched()
    features = inception_features(Path(sources.inception)) if sources.inception else None
    references = _references(benchmark)
    real = _real(features, sources.real_images) if features and sources.real_images and not references else None
    copies = None
    if sources.sscd and sources.real_images is not None and references:
        copies = descriptor_judge(sscd_descriptors(Path(sources.sscd)), sources.real_images, references, SSCD_SIDE)
    nudenet = "nudenet" in benchmark.judges
    return Panel(
        judge=_classifiers(benchmark, sources),
        clip=HubClip(sources.clip) if sources.clip else None,
        features=features,
        real=real,
        copies=copies,
        nudity=NudeNet() if nudenet else None,
        perceptual=perceptual_network(sources.lpips) if sources.lpips else None,
        described={**_described(sources), **({"nudenet": "its own model"} if nudenet else {})},
    )


def _bundled_panel(benchmark: Benchmark, sources: JudgeSources) -> Panel:
    model, allowed = benchmark.model, "lpips"
    foreign = [one.name for one in fields(sources) if one.name != allowed and getattr(sources, one.name)]
    if foreign:
        option = foreign[0].replace("_", "-")
        raise ConfigError(f"{benchmark.key} is judged by the judges of the bundled model; drop --{option}")
    sources = sources.fetched()
    shipped = zoo.info(model)["files"]
    has_clip, has_real = "clip.safetensors" in shipped, "statistics.safetensors" in shipped
    lacks = [("CLIP judge", has_clip), ("statistics of real pictures", has_real)]
    real = zoo.real_statistics(model) if has_real else None
    return Panel(
        judge=zoo.judge(model),
        clip=zoo.clip(model) if has_clip else None,
        real=None if real is None else RealPictures(Moments(real.mean, real.covariance), real.sample),
        copies=canary_judge(model) if any(case.axis == "picture" for case in benchmark.cases) else None,
        perceptual=perceptual_network(sources.lpips) if sources.lpips else None,
        missing=tuple(f"bundled model {model!r} has no {what}" for what, there in lacks if not there),
        described={"bundled": model, **_described(sources)},
    )


def _references(benchmark: Benchmark) -> list[str]:
    """Return the file names of the memorised pictures that a benchmark's rows call up."""
    called = (row.picture for case in benchmark.cases for row in case.rows if row.picture is not None)
    return list(dict.fromkeys(called))


def _classifiers(benchmark: Benchmark, sources: JudgeSources) -> Classifiers | None:
    rows = [row for case in benchmark.cases if case.axis != "nudity" for row in case.rows]
    objects = list(dict.fromkeys(row.object for row in rows if row.object is not None))
    styles = list(dict.fromkeys(row.style for row in rows if row.style is not None))
    if not sources.classifier and not sources.style_classifier:
        return None
    return Classifiers(
        ImageClassifier(sources.classifier, objects) if sources.classifier else None,
        ImageClassifier(sources.style_classifier, styles) if sources.style_classifier else None,
    )


def _real(features: Callable[[Tensor], Tensor], folder: Path) -> RealPictures:
    found = torch.cat([features(batch) for batch in read_batches(picture_files(folder), _SIDE)])
    return RealPictures(moments_of(found), found)


def _described(sources: JudgeSources) -> dict[str, Json]:
    """Return name and digest of each judge; folders of pictures by name and number of files; no path."""
    found: dict[str, Json] = {}
    for one in fields(sources):
        value: str | Path | None = getattr(sources, one.name)
        if not value:
            continue
        path = Path(value)
        if path.is_file():
            with path.open("rb") as stream:
                found[one.name] = f"{path.name} sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()[:16]}"
        elif path.is_dir():
            found[one.name] = f"{path.name} sha256:{_folder_digest(path)}"
        else:
            found[one.name] = str(value)
    return found


def _folder_digest(folder: Path) -> str:
    """Return a digest of names and sizes of a folder's files: weights and pictures are not read twice for it."""
    names = sorted((path.relative_to(folder).as_posix(), path.stat().st_size) for path in folder.rglob("*.*"))
    return hashlib.sha256(repr(names).encode()).hexdigest()[:16]
