"""The public way to train: `erase`."""

from collections.abc import Generator
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import semipermeable
from semipermeable.concept import Concept
from semipermeable.errors import CalibrationError, ConfigError
from semipermeable.hosts import Host, host_for
from semipermeable.membrane import GateState, Membrane, Provenance
from semipermeable.permeability import fit, negatives, wordings
from semipermeable.training.captions import captions_for, enrich, spec_of
from semipermeable.training.config import TrainConfig
from semipermeable.training.examples import generator_for
from semipermeable.training.loop import StepStats, Trained, train
from semipermeable.training.progress import bar, board
from semipermeable.zoo import ZooSpec

__all__ = ["erase", "erase_steps", "fit_gate"]


def erase(
    pipe: Any,
    concept: str | Concept,
    *,
    preset: str = "fast",
    seed: int = 0,
    out: str | PathLike[str] | None = None,
    config: TrainConfig | None = None,
    progress: bool = True,
) -> Membrane:
    """Train a membrane that erases a concept from a pipeline's model. The pipeline itself is left as it was.

    Args:
        pipe: a loaded diffusers pipeline of a supported family, without membranes attached.
        concept: a name, or a `Concept`. For a bundled model a plain name is completed from the model's spec: aliases,
            the object's group as surrogate, similar objects to keep.
        preset: "fast" or "paper" (SPM as published); not used if `config` is given.
        seed: the same seed on the same machine gives the same membrane, bit for bit.
        out: where to save the membrane, atomically, when training has ended; None does not save.
        config: settings instead of a preset.
        progress: show a progress bar with both losses.

    Returns:
        The membrane with its provenance and a fitted gate (none if the gate cannot be fitted).

    Raises:
        ArchitectureError: if no host supports the pipeline.
        AttachError: if the denoiser is compiled, fused or already holds membranes.
        ConfigError: if the preset is not known or the checkpoint belongs to another run.
        ConceptError: if the concept is not usable.
        DivergenceError: if training diverges.
        OutputError: if the membrane cannot be written.
    """
    chosen = config or TrainConfig.from_preset(preset)
    place = None if out is None else Path(out)
    if place is not None and not place.parent.is_dir():
        raise ConfigError(f"folder {place.parent} for out={place.name!r} does not exist; create it first")
    steps = erase_steps(pipe, concept, config=chosen, seed=seed)
    with bar(chosen.num_steps, str(getattr(concept, "name", concept)), shown=progress) as show, board(chosen) as log:
        try:
            while True:
                stats = next(steps)
                show(stats)
                log(stats)
        except StopIteration as end:
            membrane: Membrane = end.value
        finally:
            steps.close()
    if place is not None:
        from semipermeable.files import save

        save(membrane, place)
    return membrane


def erase_steps(
    pipe: Any, concept: str | Concept, *, config: TrainConfig | None = None, seed: int = 0
) -> Generator[StepStats, None, Membrane]:
    """Train step by step: a generator of figures whose return value is the membrane.

    Args:
        pipe: see `erase`.
        concept: see `erase`.
        config: settings; None takes the preset "fast".
        seed: see `erase`.
    """
    chosen = config or TrainConfig()
    host = host_for(pipe)
    spec = spec_of(pipe)
    wanted = enrich(concept, spec)
    captions = captions_for(wanted, spec)
    trained = yield from train(host, wanted, captions, chosen, seed=seed)
    story = _provenance(host, chosen, seed, trained, spec)
    return Membrane(trained.pairs, wanted, story, fit_gate(host, wanted, captions.kind, spec, seed))


def fit_gate(
    host: Host, concept: Concept, kind: Literal["object", "style"], spec: ZooSpec | None, seed: int
) -> GateState | None:
    """Fit the calibrated gate of a concept, as a membrane of it carries.

    Args:
        host: its text encoder is what the gate reads.
        concept: what opens it.
        kind: whether the concept is an object or a style.
        spec: of a bundled model, whose other words are neighbours to stay closed on; None knows none.
        seed: of the fit.

    Returns:
        The gate, or None if it cannot be fitted: the default rule then decides by names alone.
    """
    vocabulary = () if spec is None else (*spec.object_names, *spec.styles)
    try:
        calibration = fit(
            concept,
            host.encode,
            positives=wordings(concept, kind),
            negatives=negatives(concept, vocabulary, kind),
            encoder_hash=host.text_encoder_hash(),
            generator=generator_for(seed, 5),
        )
    except CalibrationError:
        return None
    settings, tensors = calibration.to_parts()
    return GateState("transport", settings, tensors)


def _provenance(host: Host, config: TrainConfig, seed: int, trained: Trained, spec: ZooSpec | None) -> Provenance:
    last = trained.last
    losses = {} if last is None else {"erasing_loss": last.erasing_loss, "anchoring_loss": last.anchoring_loss}
    return Provenance(
        base_model=host.base_model if spec is None else f"zoo:{spec.name}",
        base_hash=host.base_hash(),
        text_encoder_hash=host.text_encoder_hash(),
        family=host.family,
        prediction_type=host.prediction_type,
        training=config.to_json(),
        seed=seed,
        package_version=semipermeable.__version__,
        metrics={**losses, "steps": float(config.num_steps)},
    )
