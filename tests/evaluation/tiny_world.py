"""Stand-ins for real models, in the formats in which real ones are published.

A random Stable Diffusion folder, a random CLIP and a random classifier as `save_pretrained` writes them; TorchScript
files that are called as the published ones are.
"""

import json

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    ViTConfig,
    ViTForImageClassification,
)

from semipermeable import zoo

from helpers import make_tiny_unet

SIDE = 32


def tokenizer():
    return AutoTokenizer.from_pretrained(zoo.path("emoji") / "tokenizer")


def save_pipeline(folder):
    """Draws 32×32 noise from any prompt, but reproducibly."""
    words = tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(words), hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
            )
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3, latent_channels=4, norm_num_groups=4,
        )  # fmt: skip
    StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=words, unet=make_tiny_unet(), scheduler=DDIMScheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def save_clip(folder):
    words = tokenizer()
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**shape, "vocab_size": len(words), "eos_token_id": words.eos_token_id},
        vision_config={**shape, "image_size": SIDE, "patch_size": 8},
        projection_dim=8,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        CLIPModel(config).save_pretrained(folder)
    words.save_pretrained(folder)
    _processor(folder, "CLIPImageProcessor", size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return folder


def save_classifier(folder, labels):
    config = ViTConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=SIDE, patch_size=8,
        id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)},
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(2)
        ViTForImageClassification(config).save_pretrained(folder)
    _processor(folder, "ViTImageProcessor", size={"height": SIDE, "width": SIDE})
    return folder


def _processor(folder, kind, **how):
    """As the hub has them; half and a half stand for any mean and deviation."""
    content = {
        "image_processor_type": kind, "do_resize": True, "do_rescale": True, "do_normalize": True,
        "rescale_factor": 1 / 255, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3, **how,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(content), encoding="utf-8")


class ToyInception(nn.Module):
    """Quadrant means: 12 features."""

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        if images.dtype != torch.uint8 or not return_features:
            raise ValueError("uint8 pictures and return_features=True expected")
        return nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)


class ToySscd(nn.Module):
    """Coarse pixels as descriptors."""

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[2] != 288 or images.shape[3] != 288:
            raise ValueError("288 pixels a side expected")
        return nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)


class ToyLpips(nn.Module):
    """Mean square of the difference, shape (rows, 1, 1, 1) as the real one."""

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        return (before - after).square().mean([1, 2, 3], keepdim=True)


def save_script(module, path):
    torch.jit.save(torch.jit.script(module), str(path))
    return path


def save_pictures(folder, names, side=40):
    folder.mkdir()
    for number, name in enumerate(names):
        generator = torch.Generator().manual_seed(number)
        coarse = torch.rand(1, 3, 4, 4, generator=generator)
        pixels = (nn.functional.interpolate(coarse, (side, side + number)) * 255).byte()[0].permute(1, 2, 0)
        Image.fromarray(pixels.numpy()).save(folder / f"{name}.png")
    return folder
