"""Public icon sets: pinned, checksummed, rendered to RGBA drawings.

Sets under share-alike or proprietary terms are left out on purpose. The fluent sets are one family: its flat and 3d
versions are the same drawing, so that a split by drawing must keep them together (`FAMILY`).
"""

import io
import json
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from semipermeable.errors import ZooError
from semipermeable.zoo.bundle import digest
from semipermeable.zoo.recipe.catalogue import Catalogue, Source

__all__ = ["FAMILY", "ICON_SETS", "SIDE", "Drawings", "IconSet", "fetch", "render"]

SIDE = 96
"""Pixels of a rendered drawing; styles are applied at 64."""


@dataclass(frozen=True, kw_only=True)
class IconSet:
    """One published set of drawings."""

    designer: str
    package: str
    version: str
    sha256: str
    licence: str
    author: str
    url: str


def _iconify(name: str, version: str, sha256: str, licence: str, author: str, url: str) -> IconSet:
    return IconSet(
        designer=name,
        package=f"@iconify-json/{name}",
        version=version,
        sha256=sha256,
        licence=licence,
        author=author,
        url=url,
    )


ICON_SETS = (
    _iconify(
        "twemoji",
        "1.2.5",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        "CC-BY-4.0",
        "Twitter, Inc and other contributors",
        "https://github.com/jdecked/twemoji",
    ),
    _iconify(
        "noto",
        "1.2.9",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        "Apache-2.0",
        "Google Inc",
        "https://github.com/googlefonts/noto-emoji",
    ),
    _iconify(
        "noto-v1",
        "1.2.5",
        "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
        "Apache-2.0",
        "Google Inc",
        "https://github.com/googlefonts/noto-emoji",
    ),
    _iconify(
        "fluent-emoji-flat",
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        "MIT",
        "Microsoft Corporation",
        "https://github.com/microsoft/fluentui-emoji",
    ),
    _iconify(
        "fxemoji",
        "1.2.2",
        "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
        "Apache-2.0",
        "Mozilla",
        "https://github.com/mozilla/fxemoji",
    ),
    _iconify(
        "emojione",
        "1.2.3",
        "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
        "CC-BY-4.0",
        "Emoji One (2.3, kept up as EmojiTwo)",
        "https://github.com/EmojiTwo/emojitwo",
    ),
    IconSet(
        designer="fluent-3d",
        package="@lobehub/fluent-emoji-3d",
        version="1.1.0",
        sha256="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        licence="MIT",
        author="Microsoft Corporation, packaged by LobeHub",
        url="https://github.com/microsoft/fluentui-emoji",
    ),
)
"""Every set that is used, with what its attribution needs."""

FAMILY = {"fluent-3d": "fluent", "fluent-emoji-flat": "fluent"}
"""Designer → family, where several sets hold the same drawing."""


@dataclass(frozen=True)
class Drawings:
    """Rendered drawings: `pixels[designer]` uint8 (objects, 96, 96, 4), `present[designer]` bool (objects)."""

    pixels: dict[str, NDArray[np.uint8]]
    present: dict[str, NDArray[np.bool_]]

    def save(self, path: Path) -> None:
        """Write all drawings to one `.npz`, atomically."""
        arrays = {f"pixels/{k}": v for k, v in self.pixels.items()} | {
            f"present/{k}": v for k, v in self.present.items()
        }
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, **arrays)  # pyright: ignore[reportArgumentType]
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Drawings":
        """Read what `save` wrote."""
        with np.load(path) as content:
            arrays = {key: content[key] for key in content.files}
        return cls(
            {key.removeprefix("pixels/"): value for key, value in arrays.items() if key.startswith("pixels/")},
            {key.removeprefix("present/"): value for key, value in arrays.items() if key.startswith("present/")},
        )


def fetch(folder: Path) -> None:
    """Download every set with `npm pack`, compare its SHA-256 and unpack it; what is already there is kept.

    Raises:
        ZooError: if npm is missing, a download fails or a package differs from the pinned one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for icons in ICON_SETS:
        target = folder / icons.designer
        if target.is_dir():
            continue
        stem = icons.package.removeprefix("@").replace("/", "-")
        archive = folder / f"{stem}-{icons.version}.tgz"
        if not archive.is_file():
            npm = shutil.which("npm")
            if npm is None:
                raise ZooError(f"`npm` is needed to fetch {icons.package}@{icons.version}; install Node.js")
            done = subprocess.run(  # noqa: S603 - arguments are the constants above
                [npm, "pack", f"{icons.package}@{icons.version}", "--silent"],
                cwd=folder,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                raise ZooError(f"`npm pack {icons.package}@{icons.version}` failed: {done.stderr.strip()[:300]}")
        found = digest(archive)
        if found != icons.sha256:
            raise ZooError(f"{archive.name} has SHA-256 {found}, expected {icons.sha256}; delete it and try again")
        partial = folder / f".{icons.designer}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        with tarfile.open(archive) as packed:
            packed.extractall(partial, filter="data")
        (partial / "package").rename(target)
        shutil.rmtree(partial)


def render(catalogue: Catalogue, folder: Path) -> Drawings:
    """Render every object of a catalogue by every designer who drew it.

    Raises:
        ZooError: if `resvg_py` is not installed.
    """
    pixels: dict[str, NDArray[np.uint8]] = {}
    present: dict[str, NDArray[np.bool_]] = {}
    for icons in ICON_SETS:
        sheet = np.zeros((len(catalogue.sources), SIDE, SIDE, 4), np.uint8)
        there = np.zeros(len(catalogue.sources), bool)
        filed = None if icons.designer == "fluent-3d" else _read_set(folder / icons.designer)
        for index, source in enumerate(catalogue.sources):
            if filed is None:
                image = _raster(folder / icons.designer / "assets", source.code)
            else:
                image = _vector(filed, _name(icons.designer, source))
            if image is not None:
                sheet[index] = np.asarray(image)
                there[index] = True
        pixels[icons.designer], present[icons.designer] = sheet, there
    return Drawings(pixels, present)


def _name(designer: str, source: Source) -> str | None:
    return source.fxemoji if designer == "fxemoji" else source.icon


def _read_set(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
    return content


def _raster(folder: Path, code: str) -> Image.Image | None:
    bare = code.removesuffix("-fe0f")
    for stem in (bare, f"{bare}-fe0f"):
        path = folder / f"{stem}.webp"
        if path.is_file():
            return Image.open(path).convert("RGBA").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return None


def _vector(filed: dict[str, Any], name: str | None) -> Image.Image | None:
    try:
        import resvg_py
    except ImportError as error:
        raise ZooError(
            "building a zoo model needs resvg_py and scipy; install them with `pip install 'semipermeable[zoo]'`"
        ) from error
    aliases = filed.get("aliases", {})
    while name in aliases:
        name = aliases[name]["parent"]
    icon = filed["icons"].get(name)
    if icon is None:
        return None
    width, height = (icon.get(key, filed.get(key, 16)) for key in ("width", "height"))
    left, top = icon.get("left", 0), icon.get("top", 0)
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{SIDE}" height="{SIDE}">'
        f"{icon['body'].replace('currentColor', '#000')}</svg>"
    )
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE))
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    return image if image.size == (SIDE, SIDE) else image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
