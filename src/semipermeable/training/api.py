"""The public way to train: `erase`."""

import hashlib
from collections.abc import Generator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import semipermeable
from semipermeable.concept import Concept
from semipermeable.errors import CalibrationError, ConfigError
from semipermeable.files import save
from semipermeable.files.native import check_name
from semipermeable.hosts import Host
from semipermeable.membrane import GateState, Json, Membrane, Provenance
from semipermeable.permeability import fit, negatives, wordings
from semipermeable.permeability.calibration import Encode
from semipermeable.training.captions import CaptionSet, captions_for
from semipermeable.training.config import TrainConfig
from semipermeable.training.examples import generator_for
from semipermeable.training.loop import StepStats, Trained, train
from semipermeable.training.progress import bar, board
from semipermeable.training.start import avoidable, regulators
from semipermeable.training.surrogates import settled
from semipermeable.training.workshop import Workshop
from semipermeable.zoo import ZooSpec

__all__ = ["erase", "erase_steps", "finished", "fit_gate", "provenance", "settled_steps"]


def erase(
    pipe: Any,
    concept: str | Concept,
    *,
    preset: str = "fast",
    seed: int = 0,
    out: str | PathLike[str] | None = None,
    config: TrainConfig | None = None,
    progress: bool = True,
    orthogonal_to: Sequence[Membrane] = (),
    workshop: Workshop | None = None,
) -> Membrane:
    """Train a membrane that erases a concept from a pipeline's model. The pipeline itself is left as it was.

    Args:
        pipe: a loaded diffusers pipeline of a supported family, without membranes attached.
        concept: a name, or a `Concept`. For a bundled model a plain name is completed from the model's spec: aliases,
            similar objects to keep. A surrogate that is left open is filled in (`training.surrogates`).
        preset: "fast", "instant" (the closed form alone, from text) or "paper" (SPM as published); not used if `config`
            is given.
        seed: the same seed on the same machine gives the same membrane, bit for bit.
        out: where to save the membrane, atomically, when training has ended; None does not save.
        config: settings instead of a preset.
        progress: show a progress bar with both losses.
        orthogonal_to: membranes to whose regulators the new one's stay orthogonal, site by site: the new one does not
            answer to what the others answer to.
        workshop: of the same pipeline, when several membranes are made; None makes one.

    Returns:
        The membrane with its provenance and a fitted gate (none if the gate cannot be fitted).

    Raises:
        ArchitectureError: if no host supports the pipeline.
        AttachError: if the denoiser is compiled, fused or already holds membranes.
        ConfigError: if the preset is not known, the checkpoint belongs to another run, the workshop to another
            pipeline, or no direction is left beside `orthogonal_to`.
        ConceptError: if the concept is not usable.
        DivergenceError: if training diverges.
        SiteError: if one of `orthogonal_to` was made for another model.
        OutputError: if the membrane cannot be written; a name that is no membrane's is refused before training.
    """
    chosen = config or TrainConfig.from_preset(preset)
    place = None if out is None else Path(out)
    if place is not None:
        check_name(place)
        if not place.parent.is_dir():
            raise ConfigError(f"folder {place.parent} for out={place.name!r} does not exist; create it first")
    steps = erase_steps(pipe, concept, config=chosen, seed=seed, orthogonal_to=orthogonal_to, workshop=workshop)
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
        save(membrane, place)
    return membrane


def erase_steps(
    pipe: Any,
    concept: str | Concept,
    *,
    config: TrainConfig | None = None,
    seed: int = 0,
    orthogonal_to: Sequence[Membrane] = (),
    workshop: Workshop | None = None,
) -> Generator[StepStats, None, Membrane]:
    """Train step by step: a generator of figures whose return value is the membrane.

    Args:
        pipe: see `erase`.
        concept: see `erase`.
        config: settings; None takes the preset "fast".
        seed: see `erase`.
        orthogonal_to: see `erase`.
        workshop: see `erase`.
    """
    chosen = config or TrainConfig()
    shared = Workshop(pipe) if workshop is None else workshop
    if shared.host.pipe is not pipe:
        raise ConfigError("the workshop belongs to another pipeline; make one with Workshop(pipe)")
    (wanted,) = settled(shared, [concept], chosen)
    return (yield from settled_steps(shared, wanted, config=chosen, seed=seed, orthogonal_to=orthogonal_to))


def settled_steps(
    workshop: Workshop, concept: Concept, *, config: TrainConfig, seed: int, orthogonal_to: Sequence[Membrane] = ()
) -> Generator[StepStats, None, Membrane]:
    """Train step by step, as `erase_steps` does, a concept that lacks nothing (`surrogates.settled`)."""
    captions = captions_for(concept, workshop.spec)
    trained = yield from train(workshop, concept, captions, config, seed=seed, orthogonal_to=orthogonal_to)
    return finished(workshop, concept, captions, config, seed, trained, orthogonal_to)


def finished(
    workshop: Workshop,
    concept: Concept,
    captions: CaptionSet,
    config: TrainConfig,
    seed: int,
    trained: Trained,
    orthogonal_to: Sequence[Membrane] = (),
    *,
    joint_with: Sequence[str] | None = None,
) -> Membrane:
    """Return the membrane of trained pairs, with its gate and its story; arguments as in `provenance`."""
    host, spec = workshop.host, workshop.spec
    gate = fit_gate(host, concept, captions.kind, spec, seed, encode=workshop.encode_words)
    eta = None if config.eta(captions.kind) is not None else workshop.eta(captions, config)
    story = provenance(workshop, config, seed, trained.last, orthogonal_to, joint_with=joint_with, eta=eta)
    return Membrane(trained.pairs, concept, story, gate)


def fit_gate(
    host: Host,
    concept: Concept,
    kind: Literal["object", "style"],
    spec: ZooSpec | None,
    seed: int,
    *,
    encode: Encode | None = None,
) -> GateState | None:
    """Fit the calibrated gate of a concept, as a membrane of it carries.

    Args:
        host: its text encoder is what the gate reads.
        concept: what opens it.
        kind: whether the concept is an object or a style.
        spec: of a bundled model, whose other words are neighbours to stay closed on; None knows none.
        seed: of the fit.
        encode: the host's text encoder, through a cache that several fits share; None encodes afresh.

    Returns:
        The gate, or None if it cannot be fitted: the default rule then decides by names alone.
    """
    vocabulary = () if spec is None else (*spec.object_names, *spec.styles)
    try:
        calibration = fit(
            concept,
            encode or host.encode,
            positives=wordings(concept, kind),
            negatives=negatives(concept, vocabulary, kind),
            encoder_hash=host.text_encoder_hash(),
            generator=generator_for(seed, 5),
        )
    except CalibrationError:
        return None
    settings, tensors = calibration.to_parts()
    return GateState("transport", settings, tensors)


def provenance(
    workshop: Workshop,
    config: TrainConfig,
    seed: int,
    last: StepStats | None,
    orthogonal_to: Sequence[Membrane] = (),
    *,
    joint_with: Sequence[str] | None = None,
    eta: float | None = None,
) -> Provenance:
    """Return the story of a membrane made in a workshop.

    Args:
        workshop: where.
        config: how.
        seed: of the run.
        last: figures of the last step; None if there was none.
        orthogonal_to: membranes it was kept orthogonal to; their names are told, and a digest of their regulators.
        joint_with: names of all membranes of a joint run; None for one made alone.
        eta: η that was read off the text; None where the settings give it.

    Raises:
        SiteError: if one of `orthogonal_to` was made for another model.
    """
    host, spec = workshop.host, workshop.spec
    losses = {} if last is None else {"erasing_loss": last.erasing_loss, "anchoring_loss": last.anchoring_loss}
    found = {} if eta is None else {"negative_guidance": eta}
    beside: dict[str, Json] = {}
    if orthogonal_to:
        digest = hashlib.sha256()
        for part in regulators(avoidable(host, orthogonal_to)):
            digest.update(part)
        beside = {"orthogonal_to": [m.name for m in orthogonal_to], "orthogonal_to_hash": digest.hexdigest()}
    if joint_with is not None:
        beside["joint_with"] = list(joint_with)
    return Provenance(
        base_model=host.base_model if spec is None else f"zoo:{spec.name}",
        base_hash=host.base_hash(),
        text_encoder_hash=host.text_encoder_hash(),
        family=host.family,
        prediction_type=host.prediction_type,
        training={**config.to_json(), **beside},
        seed=seed,
        package_version=semipermeable.__version__,
        metrics={**losses, **found, "steps": float(config.num_steps)},
    )
