"""Put membranes into a pipeline and take them out: `attach` (gated per prompt) and `fold` (baked into the weights)."""

from semipermeable.equip.attachment import Attachment, attach
from semipermeable.equip.folding import Folded, fold

__all__ = ["Attachment", "Folded", "attach", "fold"]
