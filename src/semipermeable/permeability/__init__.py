"""Permeability: how strongly a membrane acts on a prompt (facilitated transport, and what goes beyond it)."""

from semipermeable.permeability.calibration import Calibration, fit
from semipermeable.permeability.decisions import Decision, EncodedPrompt, Gate, GatedConcept, Permeability
from semipermeable.permeability.fixed import Constant, PerConcept, resolve
from semipermeable.permeability.paper import PaperTransport
from semipermeable.permeability.prompts import Example, kind_of, negatives, wordings
from semipermeable.permeability.trace import Trace, TraceRow
from semipermeable.permeability.transport import Transport

__all__ = [
    "Calibration",
    "Constant",
    "Decision",
    "EncodedPrompt",
    "Example",
    "Gate",
    "GatedConcept",
    "PaperTransport",
    "PerConcept",
    "Permeability",
    "Trace",
    "TraceRow",
    "Transport",
    "fit",
    "kind_of",
    "negatives",
    "resolve",
    "wordings",
]
