"""Safe Latent Diffusion: push every step away from the concept where prompt and concept pull the same way.

With ε the base model, p the prompt, S the concept's names, ∅ the empty prompt and g the guidance scale, the paper
(Eq. 3 to 8) takes, elementwise,

    ε̄   = ε(∅) + g (ε(p) − ε(∅) − γ_t)
    γ_t = μ_t (ε(S) − ε(∅)) + s_m ν_t,        0 during the first δ steps
    μ_t = min(1, s_S |ε(p) − ε(S)|) where ε(p) − ε(S) < λ, else 0
    ν_t+1 = β_m ν_t + (1 − β_m) γ_t,          ν_0 = 0, also gathered during the first δ steps

The paper prints max in the place of min; its text and its authors' code mean a scale cut off at 1. The concept's own
predictions are a second, smaller call of the denoiser, so that the first keeps its shape and rows without any γ_t stay
bit-identical. Without guidance (g ≤ 1) there is no ε(∅), and the base model draws. The gated form sets γ_t to zero in
rows whose prompt does not ask for the concept, and steers the others away from those concepts that it does ask for.
"""

import copy
import functools
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from semipermeable.concept import Concept
from semipermeable.errors import ArchitectureError
from semipermeable.evaluation.erasers.gates import PromptGate, as_list, fit_gates
from semipermeable.evaluation.erasers.negative_prompt import names_text
from semipermeable.evaluation.erasers.protocol import Card, Draw
from semipermeable.evaluation.erasers.subjects import Subject, configuration, subjects_of
from semipermeable.evaluation.erasers.weights import bare_denoiser
from semipermeable.hosts import Condition, Host, UNetHost, host_for
from semipermeable.membrane import Json

__all__ = ["CARD", "GATED_CARD", "STRENGTHS", "Sld", "SldSettings", "SldStrength"]

CARD = Card(
    paper="Schramowski et al. 2023, Safe Latent Diffusion, CVPR, arXiv 2211.05105",
    defaults="the four published settings; the concept's names, joined by commas, are the text to avoid",
    tuned="nothing; δ, published for 50 steps, is scaled to the number of steps drawn",
    checked="ml-research/safe-latent-diffusion, sld/sld_pipeline.py, and SafetyConfig of diffusers 0.42",
)
GATED_CARD = Card(
    paper=CARD.paper,
    defaults="SLD's settings, in rows where this package's calibrated gate opens",
    tuned="nothing; the gate is fitted per concept as for a membrane",
    checked="as `sld`",
)
SldStrength = Literal["weak", "medium", "strong", "max"]
_PUBLISHED_STEPS = 50


@dataclass(frozen=True, kw_only=True)
class SldSettings:
    """Hyper-parameters of safety guidance."""

    scale: float
    """s_S."""
    threshold: float
    """λ."""
    warmup: int
    """δ, steps of 50."""
    momentum_scale: float
    """s_m."""
    momentum: float
    """β_m, in [0, 1)."""


STRENGTHS: Mapping[SldStrength, SldSettings] = {
    "weak": SldSettings(scale=20, threshold=0.0, warmup=15, momentum_scale=0.0, momentum=0.0),
    "medium": SldSettings(scale=1000, threshold=0.01, warmup=10, momentum_scale=0.3, momentum=0.4),
    "strong": SldSettings(scale=2000, threshold=0.025, warmup=7, momentum_scale=0.5, momentum=0.7),
    "max": SldSettings(scale=5000, threshold=1.0, warmup=0, momentum_scale=0.5, momentum=0.7),
}


def safety_guidance(
    empty: Tensor, prompt: Tensor, concept: Tensor, momentum: Tensor, settings: SldSettings
) -> tuple[Tensor, Tensor]:
    """Return γ_t and ν_t+1 from the predictions of one step.

    Args:
        empty: ε(∅), shape (rows, ...).
        prompt: ε(p).
        concept: ε(S).
        momentum: ν_t.
        settings: hyper-parameters.
    """
    apart = prompt - concept
    scale = torch.where(apart < settings.threshold, (settings.scale * apart.abs()).clamp(max=1), 0.0)
    guidance = scale * (concept - empty) + settings.momentum_scale * momentum
    return guidance, settings.momentum * momentum + (1 - settings.momentum) * guidance


class _Steering:
    """Safety guidance in the denoiser calls of one generation.

    Args:
        host: of the pipeline.
        condition: ε(S)'s condition, one row per prompt.
        acting: which prompts are steered, shape (prompts,).
        settings: hyper-parameters.
        warmup: δ in steps of this generation.
    """

    def __init__(self, host: Host, condition: Condition, acting: Tensor, settings: SldSettings, warmup: int) -> None:
        self._host, self._condition, self._acting = host, condition, acting
        self._settings, self._warmup = settings, warmup
        self._momentum: Tensor | None = None
        self._seen: dict[float, None] = {}
        self._asking = False

    def view(self, denoiser: nn.Module) -> nn.Module:
        """Return a view of the denoiser whose calls are steered; the denoiser stays as it is."""
        view, inner = copy.copy(denoiser), denoiser.forward

        @functools.wraps(inner)
        def forward(*args: Any, **kwargs: Any) -> Any:
            output = inner(*args, **kwargs)
            conditional = self._host.call_rows(args, kwargs).conditional
            if self._asking or all(conditional) or not bool(self._acting.any()):
                return output
            latents = args[0] if args else kwargs["sample"]
            timestep = args[1] if len(args) > 1 else kwargs["timestep"]
            return (self._steered(output[0], latents, timestep, torch.tensor(conditional)),)

        object.__setattr__(view, "forward", forward)
        return view

    def _steered(self, predicted: Tensor, latents: Tensor, timestep: Tensor, conditional: Tensor) -> Tensor:
        """Return the predictions with γ_t taken off the conditional rows that are steered."""
        rows = conditional.to(predicted.device)
        empty, prompt = predicted[~rows], predicted[rows]
        repeats = len(prompt) // len(self._condition)
        self._asking = True
        try:
            concept = self._host.predict(
                latents[rows], timestep.expand(len(prompt)), self._condition.repeat_each(repeats)
            )
        finally:
            self._asking = False
        momentum = torch.zeros_like(concept) if self._momentum is None else self._momentum
        guidance, self._momentum = safety_guidance(empty, prompt, concept, momentum, self._settings)
        self._seen.setdefault(float(timestep))
        if len(self._seen) <= self._warmup:
            return predicted
        acting = self._acting.repeat_interleave(repeats).to(predicted.device)
        result = predicted.clone()
        result[rows] = torch.where(acting.reshape(-1, 1, 1, 1), prompt - guidance, prompt)
        return result


@dataclass(frozen=True, eq=False)
class _Guided:
    """The names, the settings, and the gate if there is one."""

    config: Mapping[str, Json]
    subjects: tuple[Subject, ...]
    settings: SldSettings
    gate: PromptGate | None

    @property
    def stored_bytes(self) -> int:
        return len(names_text(self.subjects).encode()) + (self.gate.stored_bytes if self.gate else 0)

    @contextmanager
    def applied(self, pipe: Any) -> Generator[Draw, None, None]:
        """See `Erasure`."""
        denoiser, host = bare_denoiser(pipe), host_for(pipe)
        if not isinstance(host, UNetHost):
            raise ArchitectureError(
                f"SLD steers inside one call that holds unconditional and conditional rows of a UNet; {host.describes} "
                "are guided otherwise. Choose another eraser."
            )
        (name,) = host.denoiser_names

        def erased(prompt: str | Sequence[str], *, num_inference_steps: int = _PUBLISHED_STEPS, **options: Any) -> Any:
            prompts = as_list(prompt)
            asked = [self.subjects] * len(prompts) if self.gate is None else self.gate.opened(pipe, prompts)
            condition = host.condition([names_text(found) for found in asked])
            acting = torch.tensor([bool(found) for found in asked])
            warmup = round(self.settings.warmup * num_inference_steps / _PUBLISHED_STEPS)
            steering = _Steering(host, condition, acting, self.settings, warmup)
            setattr(pipe, name, steering.view(denoiser))
            try:
                return pipe(prompts, num_inference_steps=num_inference_steps, **options)
            finally:
                setattr(pipe, name, denoiser)

        yield erased


@dataclass(frozen=True)
class Sld:
    """See the module.

    Args:
        name: see `Eraser`.
        settings: hyper-parameters.
        gated: whether only prompts that ask for the concept are steered.
    """

    name: str
    settings: SldSettings
    gated: bool = False

    def prepare(self, pipe: Any, concepts: Sequence[Concept], *, seed: int, progress: bool = False) -> _Guided:  # noqa: ARG002
        """See `Eraser`."""
        subjects = subjects_of(pipe, concepts)
        gate = fit_gates(pipe, subjects, seed) if self.gated else None
        config = configuration(self.name, subjects, seed if self.gated else None, **asdict(self.settings))
        return _Guided(config, tuple(subjects), self.settings, gate)
