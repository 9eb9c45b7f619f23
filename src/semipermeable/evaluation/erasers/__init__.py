"""Erasers: membranes under every rule, and the methods they are compared with, behind one protocol."""

from semipermeable.evaluation.erasers.protocol import Card, Draw, Eraser, Erasure
from semipermeable.evaluation.erasers.registry import Registration, card, eraser, names

__all__ = ["Card", "Draw", "Eraser", "Erasure", "Registration", "card", "eraser", "names"]
