"""How long each part of a bundle is trained and measured."""

import math
from dataclasses import dataclass, field, replace

from semipermeable.errors import ConfigError
from semipermeable.zoo.recipe.loop import Budget

__all__ = ["Plan"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long each part is trained and measured; the defaults go on from a bundle that draws already."""

    seed: int = 0
    """Seed of everything."""
    autoencoder: Budget = field(
        default_factory=lambda: Budget(
            steps=2600, batch=12, rate=1.2e-3, weight_decay=1e-4, betas=(0.9, 0.98), save_every=100
        )
    )
    text: Budget = field(
        default_factory=lambda: Budget(steps=450, batch=64, rate=6e-4, warmup=30, decay=0.99, weight_decay=0.0)
    )
    denoiser: Budget = field(default_factory=lambda: Budget(steps=3400, batch=48, rate=6e-4, warmup=200, save_every=50))
    judge: Budget = field(
        default_factory=lambda: Budget(steps=4000, batch=96, rate=3e-3, warmup=200, weight_decay=0.05, save_every=200)
    )
    clip: Budget = field(
        default_factory=lambda: Budget(steps=3000, batch=96, rate=2e-3, warmup=200, weight_decay=0.05, save_every=200)
    )
    sampling: int = 25
    """DDIM steps that the bundle recommends and is measured with."""
    pictures: int = 500
    """Pictures of the evaluation."""
    ordinary: int = 128
    """Ordinary pictures compared with the taught ones."""

    def budgets(self) -> dict[str, Budget]:
        """Return how long each part is trained, by its name in the card."""
        return {
            "autoencoder": self.autoencoder,
            "text encoder": self.text,
            "denoiser": self.denoiser,
            "judge": self.judge,
            "CLIP": self.clip,
        }

    @classmethod
    def afresh(cls) -> "Plan":
        """Return a plan that starts from nothing: about as many samples as the shipped model saw in all its runs."""
        plan = cls()
        return replace(
            plan,
            autoencoder=replace(plan.autoencoder, steps=6000),
            text=replace(plan.text, steps=2500, batch=128, rate=1e-3, decay=0.998, weight_decay=0.02),
            denoiser=replace(plan.denoiser, steps=13_000, rate=1e-3, warmup=500),
        )

    def scaled(self, effort: float) -> "Plan":
        """Return this plan with every number of steps and pictures multiplied; at least 2 of each.

        Raises:
            ConfigError: if `effort` is not positive and finite.
        """
        if not 0 < effort < math.inf:
            raise ConfigError(f"effort must be positive and finite, not {effort}; 1 is the whole")

        def fewer(count: int) -> int:
            return max(2, round(count * effort))

        parts = {key: getattr(self, key) for key in ("autoencoder", "text", "denoiser", "judge", "clip")}
        shorter = {
            key: replace(part, steps=fewer(part.steps), warmup=fewer(part.warmup)) for key, part in parts.items()
        }
        return replace(self, **shorter, pictures=fewer(self.pictures), ordinary=fewer(self.ordinary))
