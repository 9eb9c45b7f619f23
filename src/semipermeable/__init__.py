"""Erase concepts from text-to-image diffusion models with rank-1 adapters.

    import semipermeable as spm
    pipe = spm.zoo.load("emoji")
    membrane = spm.erase(pipe, "cat")
    spm.save(membrane, "cat.safetensors")
    with spm.attach(pipe, ["cat.safetensors"]) as guard:
        images = pipe(["a 3d icon of a cat", "a neon icon of a dog"]).images

Names are imported on first use, so that importing this package loads neither torch nor diffusers.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semipermeable import errors, zoo
    from semipermeable.concept import Concept
    from semipermeable.equip import Attachment, Bank, attach, fold
    from semipermeable.files import load, load_concepts, save, save_concepts
    from semipermeable.files.exporting import export, merge
    from semipermeable.membrane import Membrane
    from semipermeable.training import TrainConfig, erase, erase_many

__all__ = [
    "Attachment",
    "Bank",
    "Concept",
    "Membrane",
    "TrainConfig",
    "attach",
    "erase",
    "erase_many",
    "errors",
    "export",
    "fold",
    "load",
    "load_concepts",
    "merge",
    "save",
    "save_concepts",
    "zoo",
]
__version__ = "0.1.0"

_MODULES = {
    "Attachment": "equip",
    "Bank": "equip",
    "Concept": "concept",
    "Membrane": "membrane",
    "TrainConfig": "training",
    "attach": "equip",
    "erase": "training",
    "erase_many": "training",
    "export": "files.exporting",
    "fold": "equip",
    "load": "files",
    "load_concepts": "files",
    "merge": "files.exporting",
    "save": "files",
    "save_concepts": "files",
}


def __getattr__(name: str) -> Any:
    if name in ("errors", "zoo"):
        return importlib.import_module(f"{__name__}.{name}")
    if name in _MODULES:
        value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
