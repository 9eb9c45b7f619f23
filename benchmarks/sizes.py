"""What training costs at the sizes that people use: random weights of the true shapes, a few steps.

    python benchmarks/sizes.py --count                                   # parameters and bytes a membrane, no weights
    python benchmarks/sizes.py --model sd15 --latent-size 32             # seconds a step and peak memory, two cores
    python benchmarks/sizes.py --model sdxl --device cuda --weights bf16
    python benchmarks/sizes.py --model flux --device cuda --weights bf16 --quantise int8 --offload

Every case is a process of its own, so that its peak is its own: as trained, with gradient checkpointing, and both under
bf16 autocast. Peak memory is what the allocator of the device held at most; on a CPU, what the process did (resident),
beside what it had when the pipeline was loaded. A step's seconds are the median of all but the first, and are those of
`--rows` rows, half of them anchors. Random weights say nothing about what is learnt. Writes
`benchmarks/results/sizes_<model>.json` after every case.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import semipermeable as spm
from semipermeable.files.native import to_bytes
from semipermeable.hosts import UNetHost, host_for
from semipermeable.hosts.flux import FluxHost
from semipermeable.hosts.sdxl import SDXLHost
from semipermeable.membrane import Membrane
from semipermeable.rank1 import pair_shapes
from semipermeable.sites import find_sites
from semipermeable.training import CaptionSet, TrainConfig, Workshop, train

RESULTS = Path(__file__).parent / "results"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "bf16 autocast": {"dtype": "bf16"},
    "bf16 autocast, gradient checkpointing": {"dtype": "bf16", "gradient_checkpointing": True},
}
CONCEPT = spm.Concept("cat", surrogate="animal")
CAPTIONS = CaptionSet(
    names=("cat",),
    targets=("a photo of a cat", "a drawing of a cat"),
    surrogates=("a photo of an animal", "a drawing of an animal"),
    spans=("cat", "cat"),
    anchors=("a photo of a dog", "a red car", "a tree in a field", "a bowl of fruit"),
)


def _clip(tokenizer: Any, width: int, layers: int, heads: int, projected: int | None = None) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        projection_dim=projected or width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config) if projected else CLIPTextModel(config)


def _vae(channels: int) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        latent_channels=channels,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )


def sd15_denoiser(size: int) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(sample_size=size, cross_attention_dim=768, attention_head_dim=8)


def sdxl_denoiser(size: int) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=size,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=[1, 2, 10],
        attention_head_dim=[5, 10, 20],
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


def flux_denoiser(_size: int) -> Any:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(guidance_embeds=True)


def sd15(tokenizer: Any, size: int) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=_vae(4),
        text_encoder=_clip(tokenizer, 768, 12, 12),
        tokenizer=tokenizer,
        unet=sd15_denoiser(size),
        scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl(tokenizer: Any, size: int) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline

    return StableDiffusionXLPipeline(
        vae=_vae(4),
        text_encoder=_clip(tokenizer, 768, 12, 12),
        text_encoder_2=_clip(tokenizer, 1280, 32, 20, 1280),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=sdxl_denoiser(size),
        scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False),
    )


def flux(tokenizer: Any, size: int) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("\u2581", -3.0)]
    pieces += [(letter, -4.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    encoder = T5EncoderModel(
        T5Config(
            vocab_size=32128,
            d_model=4096,
            d_kv=64,
            d_ff=10240,
            num_layers=24,
            num_heads=64,
            feed_forward_proj="gated-gelu",
            is_encoder_decoder=False,
            use_cache=False,
        )
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=_vae(16),
        text_encoder=_clip(tokenizer, 768, 12, 12),
        tokenizer=tokenizer,
        text_encoder_2=encoder,
        tokenizer_2=T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=512),
        transformer=flux_denoiser(size),
    )


MODELS = {"sd15": sd15, "sdxl": sdxl, "flux": flux}
DENOISERS = {"sd15": sd15_denoiser, "sdxl": sdxl_denoiser, "flux": flux_denoiser}
BLOCKS = {"sd15": UNetHost.site_classes, "sdxl": SDXLHost.site_classes, "flux": FluxHost.site_classes}


def count(name: str) -> dict[str, Any]:
    """Return what follows from shapes alone."""
    with torch.device("meta"):
        denoiser = DENOISERS[name](64)
    sites = find_sites(denoiser, BLOCKS[name])
    pairs = {}
    for site, found in sites.items():
        u, v = pair_shapes(found.layer, 1)
        pairs[site] = (torch.zeros(u, dtype=torch.float16), torch.ones(v, dtype=torch.float16))
    return {
        "parameters": sum(parameter.numel() for parameter in denoiser.parameters()),
        "sites": len(sites),
        "bytes a membrane, fp16": len(to_bytes(Membrane(pairs, CONCEPT))),
    }


def peak(device: str) -> float:
    """Return the most memory held so far, in GiB."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**30
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**30 if sys.platform == "darwin" else 2**20)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Train by one case in this process."""
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    dtype = DTYPES[given.weights]
    torch.set_default_dtype(dtype)
    pipe = MODELS[given.model](spm.zoo.load("emoji").tokenizer, given.latent_size)
    torch.set_default_dtype(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    host = host_for(pipe)
    for part in host.denoisers.values():
        part.eval()
        if given.quantise == "int8":
            from torchao.quantization import Int8WeightOnlyConfig, quantize_

            quantize_(part.requires_grad_(False), Int8WeightOnlyConfig())
    if given.offload:
        pipe.enable_model_cpu_offload(device=given.device)
    else:
        pipe.to(given.device)
    loaded = peak(given.device)
    half = given.rows // 2
    settings = CASES[given.case] | {"batch_size": given.rows - half, "num_anchors": half}
    settings |= {"num_steps": given.steps, "num_trajectories": 1, "sampling_steps": 2, "sampling_guidance": 1.0}
    config = TrainConfig.from_preset("fast", **settings)
    workshop = Workshop(pipe)
    began = time.perf_counter()
    seconds: list[float] = []
    steps = train(workshop, CONCEPT, CAPTIONS, config, seed=0)
    while True:
        start = time.perf_counter()
        try:
            next(steps)
        except StopIteration as end:
            pairs = end.value.pairs
            break
        seconds.append(time.perf_counter() - start)
        if given.device.startswith("cuda"):
            torch.cuda.synchronize()
    return {
        "seconds a step": round(statistics.median(seconds[1:]), 3),
        "seconds of the first step, with its trajectories": round(seconds[0], 1),
        "seconds in all": round(time.perf_counter() - began, 1),
        "peak GiB": round(peak(given.device), 2),
        "GiB loaded": round(loaded, 2),
        "bytes of the membrane, fp32": len(to_bytes(Membrane(pairs, CONCEPT))),
    }


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", action="store_true", help="print what follows from shapes alone, of all models")
    parser.add_argument("--model", choices=MODELS, default="sd15")
    parser.add_argument("--case", choices=CASES, help="only this one, in this process; prints its figures")
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES)[:2])
    parser.add_argument("--latent-size", type=int, default=64, help="height and width; 64 is a picture of 512 pixels")
    parser.add_argument("--rows", type=int, default=2, help="of one step, half of them anchors")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--weights", choices=DTYPES, default="fp32")
    parser.add_argument("--quantise", choices=["int8"], help="weights of the denoiser, by torchao")
    parser.add_argument("--offload", action="store_true", help="parts are on the device only while they run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.count:
        for name in MODELS:
            print(name, count(name), flush=True)
        return
    if given.case:
        print(json.dumps(measure(given)))
        return
    place = given.out or RESULTS / f"sizes_{given.model}.json"
    told = {key: value for key, value in vars(given).items() if key not in ("count", "case", "cases", "out")}
    device = torch.cuda.get_device_name() if given.device.startswith("cuda") else f"{platform.machine()} CPU"
    machine = {"device": device, "cores": os.cpu_count(), "torch": torch.__version__, "load": os.getloadavg()}
    result = {"options": told, "machine": machine, "shapes": count(given.model), "cases": {}}
    for case in given.cases:
        command = [sys.executable, __file__, *sys.argv[1:], "--case", case]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{case}: {done.stderr[-2000:]}")
        result["cases"][case] = json.loads(done.stdout.splitlines()[-1])
        print(case, result["cases"][case], flush=True)
        place.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
