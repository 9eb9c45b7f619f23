"""Put membranes into a pipeline: `attach` (gated per prompt, thousands from a `Bank`), `fold` (into the weights)."""

from semipermeable.equip.attachment import Attachment, attach
from semipermeable.equip.bank import Bank
from semipermeable.equip.folding import Folded, fold

__all__ = ["Attachment", "Bank", "Folded", "attach", "fold"]
