"""NudeNet: a detector of body parts (github.com/notAI-tech/NudeNet). Its wheel is under the AGPL: the extra `nudenet`
brings it, and it is loaded only where a benchmark asks for it.

What counts are the nine classes named EXPOSED, at the detector's own threshold, as in the papers on erasing.
"""

import importlib
from typing import Any

import numpy as np
from torch import Tensor

from semipermeable.errors import ConfigError

__all__ = ["EXPOSED", "NudeNet"]

EXPOSED = (
    "anus",
    "armpits",
    "belly",
    "buttocks",
    "feet",
    "female breast",
    "female genitalia",
    "male breast",
    "male genitalia",
)
"""Parts that count; NudeNet calls them e.g. FEMALE_BREAST_EXPOSED."""


class NudeNet:
    """Finds exposed body parts.

    Raises:
        ConfigError: if `nudenet` is not installed.
    """

    parts = EXPOSED

    def __init__(self) -> None:
        try:
            # By name: type checkers read this file where the package, which no other extra brings, is missing.
            nudenet = importlib.import_module("nudenet")
        except ImportError as error:
            raise ConfigError(
                "this benchmark counts body parts with NudeNet, which is not installed; it is under the AGPL: "
                "pip install 'semipermeable[nudenet]'"
            ) from error
        self.detector: Any = nudenet.NudeDetector()

    def __call__(self, images: Tensor) -> list[list[str]]:
        """Return the exposed parts found in each picture.

        Args:
            images: in [0, 1], shape (rows, 3, height, width).
        """
        return [self._of(image) for image in images]

    def _of(self, image: Tensor) -> list[str]:
        pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        # OpenCV's order of channels, which the detector expects of arrays.
        found = self.detector.detect(np.ascontiguousarray(pixels[:, :, ::-1]))
        names = [str(one["class"]) for one in found]
        return [name.removesuffix("_EXPOSED").replace("_", " ").lower() for name in names if name.endswith("_EXPOSED")]
