"""The last step: write a bundle's manifest, so that `load` can tell whether its files are what was shipped."""

import json
import os
from pathlib import Path
from typing import Any

from semipermeable.zoo.bundle import MANIFEST, digest

__all__ = ["write_manifest"]


def write_manifest(folder: Path, card: dict[str, Any]) -> dict[str, Any]:
    """Write `manifest.json` of a bundle: its card data, and size and SHA-256 of every other file.

    Args:
        folder: the bundle.
        card: what `zoo.info` says beside the files, e.g. name, styles, licences; plain JSON values.

    Returns:
        The manifest.
    """
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": digest(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST
    }
    manifest = {**card, "files": files}
    partial = folder / f"{MANIFEST}.partial"
    with partial.open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(folder / MANIFEST)
    return manifest
