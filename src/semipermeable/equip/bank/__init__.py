"""A membrane bank: thousands of membranes beside a pipeline, of which only those that a prompt opens are read."""

from semipermeable.equip.bank.bank import Bank
from semipermeable.equip.bank.gate import BankGate

__all__ = ["Bank", "BankGate"]
