"""The zoo: small text-to-image models that come with the package, really trained, with judges of what they draw.

    pipe = zoo.load("emoji")
    image = pipe("a neon icon of a cat", num_inference_steps=25, guidance_scale=4.0).images[0]

Every function takes the name of a bundled model, or the `Path` of a bundle's folder as `spm zoo build` writes it.
Importing this module loads neither torch nor diffusers.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from semipermeable.zoo.bundle import bundle_folder, bundle_names, read_manifest, verify
from semipermeable.zoo.shipped import load_membrane, membrane, membrane_figures, membranes
from semipermeable.zoo.spec import Canary, ZooObject, ZooSpec, read_spec

if TYPE_CHECKING:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
    from torch import Tensor

    from semipermeable.zoo.judges import Clip, FeatureStatistics, Judge

__all__ = [
    "Canary",
    "ZooObject",
    "ZooSpec",
    "canary_pictures",
    "captions",
    "clip",
    "info",
    "judge",
    "load",
    "load_membrane",
    "membrane",
    "membrane_figures",
    "membranes",
    "names",
    "path",
    "real_statistics",
    "spec",
]


def names() -> list[str]:
    """Return the names of all bundled models."""
    return bundle_names()


def path(name: str | Path) -> Path:
    """Return the folder of a bundled model's pipeline, readable by `StableDiffusionPipeline.from_pretrained`.

    Raises:
        UnknownNameError: if no bundled model has that name.
    """
    return bundle_folder(name) / "pipeline"


def info(name: str | Path) -> dict[str, Any]:
    """Return what is known about a bundled model: card data, licences, and size and SHA-256 of every file."""
    return read_manifest(bundle_folder(name))


def spec(name: str | Path) -> ZooSpec:
    """Return the objects, styles and captions that a bundled model was taught."""
    folder = bundle_folder(name)
    verify(folder, ["spec.json"])
    return read_spec(folder / "spec.json")


def captions(name: str | Path) -> list[str]:
    """Return the plainest caption of every object in every style."""
    return list(spec(name).captions())


def load(name: str | Path) -> "StableDiffusionPipeline":
    """Load a bundled model as a diffusers pipeline: float32, on the CPU, without progress bar.

    Args:
        name: one of `names()`.

    Raises:
        UnknownNameError: if no bundled model has that name.
        ZooError: if a file is missing or damaged.
    """
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from transformers import CLIPTextModel, CLIPTokenizer

    folder = bundle_folder(name)
    verify(folder, ["pipeline/"])
    parts = folder / "pipeline"
    # Part by part: the pipeline's own loader draws a progress bar that nothing but global state turns off.
    scheduler: Any = DDIMScheduler.from_pretrained(parts / "scheduler", local_files_only=True)
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(parts / "vae", torch_dtype=torch.float32, local_files_only=True),
        text_encoder=CLIPTextModel.from_pretrained(parts / "text_encoder", dtype=torch.float32, local_files_only=True),
        tokenizer=CLIPTokenizer.from_pretrained(parts / "tokenizer", local_files_only=True),
        unet=UNet2DConditionModel.from_pretrained(parts / "unet", torch_dtype=torch.float32, local_files_only=True),
        scheduler=scheduler,
        safety_checker=None,  # pyright: ignore[reportArgumentType] - optional in fact
        feature_extractor=None,  # pyright: ignore[reportArgumentType] - optional in fact
        requires_safety_checker=False,
    )
    # So that whatever is made with it says on which model, without a machine's path.
    pipeline.register_to_config(_name_or_path=f"zoo:{folder.name}")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def judge(name: str | Path) -> "Judge":
    """Return the classifier of object and style that belongs to a bundled model.

    Raises:
        UnknownNameError: if no bundled model has that name.
        ZooError: if a file is missing or damaged.
    """
    from semipermeable.zoo.judges import Judge

    folder = bundle_folder(name)
    verify(folder, ["judge.safetensors"])
    taught = spec(name)
    return Judge(folder / "judge.safetensors", taught.object_names, taught.styles)


def clip(name: str | Path) -> "Clip":
    """Return the small CLIP, independent of the pipeline's text encoder, for scores of picture against text.

    Raises:
        UnknownNameError: if no bundled model has that name.
        ZooError: if a file is missing or damaged.
    """
    from transformers import CLIPTokenizer

    from semipermeable.zoo.judges import Clip

    folder = bundle_folder(name)
    verify(folder, ["clip.safetensors", "pipeline/tokenizer/"])
    return Clip(folder / "clip.safetensors", CLIPTokenizer.from_pretrained(folder / "pipeline" / "tokenizer"))


def real_statistics(name: str | Path) -> "FeatureStatistics":
    """Return mean, covariance and a sample of `judge(name).features` over real icons, for distances to them.

    Raises:
        UnknownNameError: if no bundled model has that name.
        ZooError: if a file is missing or damaged, or an earlier version of this package built the bundle.
    """
    from safetensors.torch import load_file

    from semipermeable.errors import ZooError
    from semipermeable.zoo.judges import FeatureStatistics

    folder = bundle_folder(name)
    verify(folder, ["statistics.safetensors"])
    content = load_file(folder / "statistics.safetensors")
    if "sample" not in content:
        raise ZooError(f"bundle {str(name)!r} was built before statistics held a sample; run `spm zoo build` again")
    mean, covariance, sample = (content[key].double() for key in ("mean", "covariance", "sample"))
    return FeatureStatistics(mean, covariance, int(content["count"]), sample)


def canary_pictures(name: str | Path) -> "Tensor":
    """Return the pictures that a bundled model memorised on purpose: (canaries, 3, 64, 64) in [0, 1].

    Row by row they belong to `spec(name).canaries`.

    Raises:
        UnknownNameError: if no bundled model has that name.
        ZooError: if a file is missing or damaged.
    """
    from safetensors.torch import load_file

    folder = bundle_folder(name)
    verify(folder, ["canaries.safetensors"])
    return load_file(folder / "canaries.safetensors")["pictures"].float() / 255
