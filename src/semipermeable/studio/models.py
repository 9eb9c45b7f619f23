"""Which models may be chosen, and the one that is open."""

from collections.abc import Callable
from typing import Any

from semipermeable import zoo
from semipermeable.errors import StudioError, closest
from semipermeable.generation import load_model
from semipermeable.hosts import host_for
from semipermeable.studio.workfolder import WorkFolder
from semipermeable.training.captions import spec_of
from semipermeable.zoo import ZooSpec

__all__ = ["ModelRack"]


class ModelRack:
    """Models by name: the bundled ones, those named on the command line, and those in the work folder.

    A browser chooses among the names; it never names a path or a hub id.

    Args:
        work: folders and checkpoints in its corner "models" can be chosen.
        named: specs of `load_model` that whoever started the studio allows; the first one is the default.
        device: torch device; None takes the best there is.
        on_open: called with the denoiser of every model that is opened.
    """

    def __init__(
        self,
        work: WorkFolder,
        named: tuple[str, ...] = (),
        device: str | None = None,
        on_open: Callable[[Any], None] | None = None,
    ) -> None:
        self._work = work
        self._named = named
        self._device = device
        self._on_open = on_open
        self._open: tuple[str, Any] | None = None

    @property
    def default(self) -> str:
        """The name that is chosen at first."""
        return self.choices()[0]

    @property
    def opened(self) -> str | None:
        """The name of the model that is open."""
        return None if self._open is None else self._open[0]

    def choices(self) -> list[str]:
        """Return every name that may be chosen."""
        corner = self._work.corner("models")
        own = sorted(
            path.name
            for path in corner.iterdir()
            if not path.name.startswith(".")
            and (path.suffix == ".safetensors" or (path / "model_index.json").is_file())
        )
        return list(dict.fromkeys((*self._named, *zoo.names(), *own)))

    def open(self, name: str) -> Any:
        """Return the pipeline of a name; the last one stays open. Called by the worker alone.

        Args:
            name: one of `choices()`.

        Raises:
            StudioError: if it is not one of them.
            ModelError: if it cannot be loaded.
        """
        spec = self._spec(name)
        if self._open is None or self._open[0] != name:
            self._open = None
            pipe = load_model(spec, device=self._device)
            if self._on_open is not None:
                self._on_open(host_for(pipe).denoiser)
            self._open = (name, pipe)
        return self._open[1]

    def apart(self, name: str) -> Any:
        """Return a pipeline of a name that nothing else uses, on the CPU and in fp32: to bake membranes into.

        Raises:
            StudioError: if it is not one of `choices()`.
            ModelError: if it cannot be loaded.
        """
        return load_model(self._spec(name), device="cpu", dtype="fp32")

    def known(self, name: str) -> ZooSpec | None:
        """Return what a bundled model was taught, or None for any other."""
        return zoo.spec(name) if name in zoo.names() else None

    def judge(self, pipe: Any) -> Any:
        """Return the judge that belongs to a bundled model, or None."""
        spec = spec_of(pipe)
        return None if spec is None else zoo.judge(spec.name)

    def _spec(self, name: str) -> str:
        if name not in self.choices():
            raise StudioError(
                f"{closest(name, self.choices(), what='model')} Put a diffusers folder into the studio's folder "
                "'models', or start with `spm studio --model`."
            )
        own = name not in self._named and name not in zoo.names()
        return str(self._work.place("models", name)) if own else name
