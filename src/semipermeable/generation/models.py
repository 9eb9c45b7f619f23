"""Load a text-to-image pipeline from what a user can name: a bundled model, a hub id, a folder, or one file.

Weights are read from safetensors only. A pickle (`.ckpt`, `.bin`, `.pt`) can run any code when it is opened, so it is
refused.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from semipermeable import zoo
from semipermeable.errors import ModelError, closest
from semipermeable.hosts import host_for

__all__ = ["load_for_training", "load_model"]

_PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl", ".pickle")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_DTYPES = ("fp32", "fp16", "bf16")


def load_model(spec: str, *, device: str | None = None, dtype: str | None = None) -> Any:
    """Load a pipeline that a host supports.

    Args:
        spec: a name of `zoo.names()`, a local diffusers folder, a single `.safetensors` checkpoint, or a hub id
            ("owner/name").
        device: a torch device; None takes CUDA or MPS where there is one, else the CPU.
        dtype: "fp32", "fp16" or "bf16"; None is fp32 on the CPU and for bundled models, else fp16.

    Returns:
        The pipeline on its device, without progress bar.

    Raises:
        ModelError: if the model cannot be found or read, holds pickles, or the device or dtype is not usable here.
        ArchitectureError: if no host supports the pipeline.
    """
    place = _device(device)
    bundled = spec in zoo.names()
    precision = _dtype(dtype, place, bundled)
    pipe = zoo.load(spec) if bundled else _finder(spec)(precision)
    host_for(pipe)
    _place(pipe, place, precision)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_for_training(spec: str, device: str | None) -> Any:
    """Load a pipeline as training wants it, in fp32; arguments and errors as in `load_model`."""
    return load_model(spec, device=device, dtype="fp32")


def _place(pipe: Any, place: Any, precision: Any) -> None:
    try:
        pipe.to(place)
        if pipe.dtype != precision:
            pipe.to(precision)
    except (RuntimeError, AssertionError, ImportError) as error:
        if "out of memory" in str(error):
            raise
        raise ModelError(f"the model cannot be moved to device {place} ({_short(error)}); try --device cpu") from error


def _device(name: str | None) -> Any:
    import torch

    if name is None:
        available = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(available)
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"{name!r} is not a torch device; write cpu, cuda, cuda:0 or mps") from error
    if device.type == "meta":
        raise ModelError("the device 'meta' holds no numbers, so nothing can be drawn on it; use --device cpu")
    missing = (device.type == "cuda" and not torch.cuda.is_available()) or (
        device.type == "mps" and not torch.backends.mps.is_available()
    )
    if missing:
        raise ModelError(f"device {name!r} is not available on this machine; use --device cpu")
    return device


def _dtype(name: str | None, device: Any, bundled: bool) -> Any:
    import torch

    known = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    if name is None:
        return torch.float32 if bundled or device.type == "cpu" else torch.float16
    if name not in known:
        raise ModelError(closest(name, _DTYPES, what="dtype"))
    return known[name]


def local_path(spec: str) -> Path:
    """Return the path that a model's spec would be; whether anything is there is not asked.

    Raises:
        ModelError: if it begins with the home folder of somebody who is not there.
    """
    try:
        return Path(spec).expanduser()
    except RuntimeError as error:
        raise ModelError(f"there is no file or folder {spec!r} ({error}); check the path") from error


def _finder(spec: str) -> Callable[[Any], Any]:
    """Say how `spec` is to be loaded, before anything heavy happens."""
    path = local_path(spec)
    if path.suffix.lower() in _PICKLES:
        raise ModelError(
            f"{spec!r} is a pickle, and opening a pickle can run any code; convert it to .safetensors and pass that"
        )
    if path.is_dir():
        return lambda dtype: _from_folder(path, dtype)
    if path.is_file():
        return lambda dtype: _from_file(path, dtype)
    looks_local = spec.startswith((".", "~", "/")) or path.suffix == ".safetensors" or spec.count("/") > 1
    if looks_local:
        raise ModelError(f"there is no file or folder {spec!r}; check the path")
    if _HUB_ID.fullmatch(spec):
        return lambda dtype: _from_hub(spec, dtype)
    raise ModelError(
        f"{closest(spec, zoo.names(), what='model')} A model is a bundled name, a hub id (owner/name), a diffusers "
        "folder, or a .safetensors checkpoint."
    )


def _from_folder(path: Path, dtype: Any) -> Any:
    if not (path / "model_index.json").is_file():
        raise ModelError(
            f"folder {str(path)!r} holds no model_index.json, so it is no diffusers pipeline; pass the folder that "
            "`save_pretrained` wrote"
        )
    return _pretrained(path, dtype, f"the pipeline in {str(path)!r}", local_files_only=True)


def _from_hub(spec: str, dtype: Any) -> Any:
    return _pretrained(spec, dtype, f"model {spec!r}", local_files_only=False)


def _pretrained(source: str | Path, dtype: Any, what: str, *, local_files_only: bool) -> Any:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    try:
        return DiffusionPipeline.from_pretrained(
            source, torch_dtype=dtype, use_safetensors=True, local_files_only=local_files_only
        )
    except MemoryError:
        raise
    except Exception as error:
        if "out of memory" in str(error):
            raise
        where = (
            "check that the folder is complete and holds .safetensors weights"
            if local_files_only
            else "check the name and the network, or download it and pass its folder"
        )
        raise ModelError(f"{what} cannot be loaded ({_short(error)}); {where}") from error


def _from_file(path: Path, dtype: Any) -> Any:
    if path.suffix.lower() != ".safetensors":
        raise ModelError(f"{str(path)!r} is neither a folder nor a .safetensors checkpoint; convert it first")
    is_flux = _check_checkpoint(path)
    beside = path.with_suffix("")
    config = str(beside) if (beside / "model_index.json").is_file() else None
    if is_flux:
        return _flux_from_file(path, beside, dtype)
    try:
        return _pipeline_class(path, config).from_single_file(
            str(path), config=config, torch_dtype=dtype, local_files_only=config is not None
        )
    except MemoryError:
        raise
    except Exception as error:
        if "out of memory" in str(error):
            raise
        raise ModelError(
            f"checkpoint {str(path)!r} cannot be loaded ({_short(error)}); diffusers needs the configuration of its "
            f"family: allow the network once, put a diffusers folder of that family (its weights may be missing) at "
            f"{str(beside)!r}, or pass a diffusers folder"
        ) from error


def _flux_from_file(path: Path, beside: Path, dtype: Any) -> Any:
    """Load the denoiser from an original FLUX.1 file, which holds nothing else, and the rest from a folder."""
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    needs = (
        f"checkpoint {str(path)!r} holds the denoiser of FLUX.1 alone; put a diffusers folder of FLUX.1 (weights of "
        f"its transformer may be missing) at {str(beside)!r}, or pass a diffusers folder"
    )
    if not (beside / "model_index.json").is_file():
        raise ModelError(needs)
    try:
        transformer = FluxTransformer2DModel.from_single_file(
            str(path), config=str(beside), subfolder="transformer", torch_dtype=dtype, local_files_only=True
        )
        return DiffusionPipeline.from_pretrained(
            beside, transformer=transformer, torch_dtype=dtype, use_safetensors=True, local_files_only=True
        )
    except MemoryError:
        raise
    except Exception as error:
        if "out of memory" in str(error):
            raise
        raise ModelError(f"checkpoint {str(path)!r} cannot be loaded ({_short(error)}): {needs}") from error


def _pipeline_class(path: Path, config: str | None) -> Any:
    """Return the class of pipeline that a checkpoint belongs to: its configuration's, found by its tensors' shapes."""
    import diffusers
    import torch
    from diffusers.loaders.single_file_utils import fetch_diffusers_config
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from safetensors import safe_open

    if config is None:
        with safe_open(path, framework="pt") as content:
            shapes = {name: content.get_slice(name).get_shape() for name in content.keys()}  # noqa: SIM118 - no mapping
        shown = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        config = fetch_diffusers_config(shown)["pretrained_model_name_or_path"]
    found: Any = DiffusionPipeline.load_config(config)
    return getattr(diffusers, found["_class_name"])


def _check_checkpoint(path: Path) -> bool:
    """Read the header only: damaged files and membranes are told apart from checkpoints before gigabytes are read.

    Returns whether it is the denoiser of FLUX.1 as that was released.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as content:
            metadata = content.metadata() or {}
            names = list(content.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{str(path)!r} is not a readable safetensors file ({_short(error)}); get it again") from error
    if any(key.startswith("semipermeable") for key in metadata):
        raise ModelError(f"{str(path)!r} is a membrane, not a model; pass it as --membrane")
    if any(name.removeprefix("model.diffusion_model.").startswith("double_blocks.") for name in names):
        return True
    if not any(name.startswith("model.diffusion_model.") for name in names):
        raise ModelError(
            f"{str(path)!r} is no Stable Diffusion checkpoint (no tensor named model.diffusion_model.*); "
            "pass a full checkpoint or a diffusers folder"
        )
    return False


def _short(error: BaseException) -> str:
    """Return the first line of an error, cut to a readable length."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if len(line) <= 200 else line[:199] + "…"
