"""Where bundled models lie, and the check that they are what was shipped.

A bundle is a folder `assets/<name>/` with a `manifest.json` that lists every file with its size and SHA-256. Nothing
is read before its digest was compared: a truncated download or a Git LFS pointer is named instead of failing deep
inside torch.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from semipermeable.errors import UnknownNameError, ZooError, closest

__all__ = ["ASSETS", "MANIFEST", "bundle_folder", "bundle_names", "digest", "read_manifest", "verify", "write_manifest"]

ASSETS = Path(__file__).parent / "assets"
"""Folder of all bundles."""
MANIFEST = "manifest.json"
"""Name of the file that lists a bundle's files."""
_AGAIN = "reinstall semipermeable, or build the bundle again"


def bundle_names() -> list[str]:
    """Return the names of all bundled models, sorted."""
    return sorted(path.parent.name for path in ASSETS.glob(f"*/{MANIFEST}"))


def bundle_folder(name: str | Path) -> Path:
    """Return the folder of the bundled model `name`; a `Path` is the folder of a bundle made by `spm zoo build`.

    Raises:
        UnknownNameError: if there is none of that name; close names are suggested.
        ZooError: if the folder is not a bundle.
    """
    if isinstance(name, Path):
        if not (name / MANIFEST).is_file():
            raise ZooError(f"{name} is not a bundle: it has no {MANIFEST}; make one with `spm zoo build`")
        return name
    if name not in bundle_names():
        raise UnknownNameError(closest(name, bundle_names(), what="bundled model"))
    return ASSETS / name


def digest(path: Path) -> str:
    """Return the SHA-256 of a file as lower-case hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a bundle: its card data, and `files` with size and SHA-256 of each.

    Raises:
        ZooError: if it cannot be read, or does not list files so.
    """
    what = f"{MANIFEST} of the bundled model {folder.name!r}"
    try:
        manifest: Any = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ZooError(f"{what} cannot be read ({error}); {_AGAIN}") from error
    files: Any = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or not all(map(_is_entry, cast("dict[str, Any]", files).values())):
        raise ZooError(f"{what} does not list files with size and SHA-256 of each; {_AGAIN}")
    return cast("dict[str, Any]", manifest)


def _is_entry(found: Any) -> bool:
    return isinstance(found, dict) and isinstance(found.get("bytes"), int) and isinstance(found.get("sha256"), str)


def verify(folder: Path, names: Iterable[str] | None = None) -> None:
    """Compare files of a bundle with its manifest.

    Args:
        folder: the bundle.
        names: path prefixes inside the bundle to check; None checks every file.

    Raises:
        ZooError: if a file is missing or its SHA-256 differs, or the manifest lists none that begins with a prefix.
    """
    prefixes = None if names is None else tuple(names)
    files = read_manifest(folder)["files"]
    for prefix in prefixes or ():
        if not any(relative.startswith(prefix) for relative in files):
            raise ZooError(f"bundled model {folder.name!r}: {MANIFEST} lists no {prefix}; {_AGAIN}")
    for relative, expected in files.items():
        if prefixes is not None and not relative.startswith(prefixes):
            continue
        path = folder / relative
        if not path.is_file():
            raise ZooError(f"bundled model {folder.name!r}: {relative} is missing; reinstall semipermeable")
        found = digest(path)
        if found != expected["sha256"]:
            raise ZooError(
                f"bundled model {folder.name!r}: {relative} has SHA-256 {found[:12]}… and {path.stat().st_size} bytes, "
                f"expected {expected['sha256'][:12]}… and {expected['bytes']} bytes; the file is damaged or was "
                "changed (a Git LFS pointer?): reinstall semipermeable"
            )


def write_manifest(folder: Path, card: dict[str, Any]) -> dict[str, Any]:
    """Write `manifest.json` of a bundle: its card data, and size and SHA-256 of every other file.

    Args:
        folder: the bundle.
        card: what `zoo.info` says beside the files, e.g. name, styles, licences; plain JSON values.

    Returns:
        The manifest.

    Raises:
        OutputError: if it cannot be written.
    """
    from semipermeable.files.atomic import write_atomically  # here: with it comes torch, and names must come without

    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": digest(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST
    }
    manifest = {**card, "files": files}
    write_atomically(folder / MANIFEST, (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode())
    return manifest
