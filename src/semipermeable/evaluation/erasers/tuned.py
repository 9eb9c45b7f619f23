"""Settings of rivals that were found for the bundled model: `NAME:tuned`.

Published settings are for Stable Diffusion, with eighty times the weights; on the bundled model a learning rate of
theirs may do nothing at all. A comparison with those alone would be unfair. `benchmarks/tune_rivals.py` searched a
small grid for every rival on concepts that are in no table ("cat" and "neon"), and wrote the best by the harmonic mean
to `tuned.json` beside this module; `benchmarks/results/tune_rivals.json` holds all that was tried.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from semipermeable.membrane import Json

__all__ = ["FOUND", "tuned_settings"]

FOUND = Path(__file__).with_name("tuned.json")
"""Eraser to the fields that differ from its own settings."""
_SHARED = {"gated-uce": "uce"}
"""A gated eraser takes the settings of the one it gates."""


@cache
def tuned_settings() -> Mapping[str, Mapping[str, Json]]:
    """Return the fields of "tuned" by eraser; an eraser that is best at its own settings has none."""
    found: dict[str, dict[str, Json]] = json.loads(FOUND.read_text(encoding="utf-8"))
    return found | {gated: found[name] for gated, name in _SHARED.items() if name in found}
