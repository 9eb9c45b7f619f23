"""What model a result was made with: an identity of its weights that no path or machine enters."""

import hashlib
from pathlib import Path

from semipermeable import zoo
from semipermeable.errors import ModelError
from semipermeable.evaluation.results import short_hash
from semipermeable.generation.models import local_path

__all__ = ["identity_of"]


def identity_of(model: str) -> str:
    """Return a hash of a model's weights and configuration.

    Args:
        model: a bundled name, a diffusers folder, a checkpoint file, or a hub id, which counts as the commit that the
            hub has now, or without network the local cache.

    Raises:
        ModelError: if it is none of them.
    """
    if model in zoo.names():
        shipped = zoo.info(model)["files"]
        return short_hash({name: entry["sha256"] for name, entry in shipped.items() if "/" in name})
    path = local_path(model)
    if path.is_file():
        return short_hash(_digest(path))
    if path.is_dir():
        files = sorted(one for one in path.rglob("*") if one.suffix in (".safetensors", ".json", ".txt"))
        return short_hash({one.relative_to(path).as_posix(): _digest(one) for one in files})
    return short_hash([model, _commit(model)])


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _commit(model: str) -> str:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        # Lies in `snapshots/COMMIT/model_index.json` of the cache.
        return Path(hf_hub_download(model, "model_index.json")).parent.name
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"model {model!r} is no bundled model, folder or file, and the hub cannot be asked about it; check the "
            "name and the network, or download it and pass --model FOLDER"
        ) from error
