"""What users of large models put around a denoiser: relatives of a pipeline, adapters, other executions of its layers.

Everything is made from a tiny random pipeline (`tiny_unets`, `tiny_dits`), shares its denoiser, and is a real class of
diffusers.
"""

import inspect
import types

import torch

from hosts.family_laws import PROMPTS
from semipermeable.concept import Concept
from semipermeable.hosts import host_for
from semipermeable.membrane import Membrane, Provenance

from helpers import random_membrane

STEPS = 2


def make_sd1(tokenizer):
    """Stable Diffusion 1.x: projections by 1×1 convolution."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextModel

    from hosts.tiny_unets import _text_config, _vae

    from helpers import make_tiny_unet

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return StableDiffusionPipeline(
            vae=_vae(),
            text_encoder=CLIPTextModel(_text_config(tokenizer, 24, hidden_act="quick_gelu")).eval(),
            tokenizer=tokenizer,
            unet=make_tiny_unet(),
            scheduler=DDIMScheduler(
                beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def make_pipe(family, tokenizer):
    """A tiny random pipeline of a family, quiet."""
    from hosts import tiny_large as large
    from hosts.tiny_dits import make_flux, make_pixart, make_sd3
    from hosts.tiny_unets import make_sdxl

    makers = {"unet": make_sd1, "sdxl": make_sdxl, "sd3": make_sd3, "flux": make_flux}
    without = {
        "pixart": make_pixart,
        "wan": large.make_wan,
        "qwen-image": large.make_qwen_image,
        "sana": large.make_sana,
        "z-image": large.make_z_image,
    }
    pipe = makers[family](tokenizer) if family in makers else without[family]()
    if family in ("flux", "qwen-image", "z-image"):
        pipe.default_sample_size = 8
    if family == "wan":
        pipe.default_num_frames, pipe.default_height, pipe.default_width = 5, 32, 32
    if family == "qwen-image":
        # The number of tokens before the prompt, with this vocabulary.
        before = pipe.prompt_template_encode.split("{}")[0]
        pipe.prompt_template_encode_start_idx = len(pipe.tokenizer(before).input_ids)
    if family == "sd3":
        _widen(pipe)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _widen(pipe):
    """Give Stable Diffusion 3 latents of 16 channels: its inpainting pipeline takes no others."""
    from hosts.tiny_dits import _vae, lively

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = dict(pipe.transformer.config) | {"in_channels": 16, "out_channels": 16}
        pipe.register_modules(transformer=lively(type(pipe.transformer).from_config(config), 1.6), vae=_vae(16).eval())


def membranes_for(pipe, number=1, *, scale=0.05):
    """Random membranes on all sites of the family, called cat, tree, c2, c3 …"""
    host = host_for(pipe)
    names = ["cat", "tree", *(f"c{i}" for i in range(2, number))]
    return [
        Membrane(
            random_membrane(host.denoiser, inside=host.site_classes, scale=scale, seed=seed).pairs,
            Concept(name),
            Provenance(family=host.family),
        )
        for seed, name in enumerate(names[:number])
    ]


def draw(pipe, prompts=PROMPTS, *, guidance=3.5, steps=STEPS, output="latent", **options):
    """Final latents of a pipeline, or pictures, each row with noise of its own.

    `options` are the pipeline's own arguments, before what the host says of size and guidance.
    """
    host = host_for(pipe)
    avoided = [host.default_negative] * len(prompts) if host.default_negative and guidance > 1 else None
    told = {**host.size_arguments(), **host.draw_arguments(guidance, avoided)} | options
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    with torch.random.fork_rng():
        # Some ControlNet pipelines sample the latents of the control image from the global generator.
        torch.manual_seed(0)
        result = pipe(
            prompt=list(prompts),
            generator=generators,
            output_type=output,
            **{name: value for name, value in ({"num_inference_steps": steps} | told).items() if value is not None},
        )
        return host.drawn(result)


def picture(seed, *, channels=3, size=16):
    """A random picture in [0, 1], one for every prompt."""
    return torch.rand(len(PROMPTS), channels, size, size, generator=torch.Generator().manual_seed(seed))


def _sibling(pipe, name, **more):
    import diffusers

    cls = getattr(diffusers, name)
    flags = (
        {"requires_safety_checker": False}
        if name.startswith("StableDiffusion") and "safety" in str(cls.__init__.__annotations__)
        else {}
    )
    taken = set(inspect.signature(cls.__init__).parameters)
    made = cls(**{part: module for part, module in pipe.components.items() if part in taken}, **more, **flags)
    if hasattr(pipe, "prompt_template_encode_start_idx"):
        made.prompt_template_encode_start_idx = pipe.prompt_template_encode_start_idx
    made.set_progress_bar_config(disable=True)
    return made


_CLASSES = {
    "unet": "StableDiffusion{}Pipeline",
    "sdxl": "StableDiffusionXL{}Pipeline",
    "sd3": "StableDiffusion3{}Pipeline",
    "flux": "Flux{}Pipeline",
    "qwen-image": "QwenImage{}Pipeline",
    "z-image": "ZImage{}Pipeline",
    "sana": "Sana{}Pipeline",
}
_EDGE = {"qwen-image": 32, "sana": 32}
"""Of pictures, in pixels, where a smaller one has too few latents."""


def _sized(family):
    edge = _EDGE.get(family, 16)
    return {"height": edge, "width": edge}


def video_to_video(pipe, family):
    """Wan's video-to-video pipeline and what it is called with."""
    video = torch.rand(len(PROMPTS), 5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return _sibling(pipe, "WanVideoToVideoPipeline"), {
        "video": video, "strength": 0.6, "num_inference_steps": 4, "height": 32, "width": 32
    }  # fmt: skip


def image_to_image(pipe, family):
    """The family's img2img pipeline and what it is called with."""
    size = {} if family in ("unet", "sdxl") else _sized(family)
    # half of the steps are run
    return _sibling(pipe, _CLASSES[family].format("Img2Img")), {
        "image": picture(1, size=_EDGE.get(family, 16)), "strength": 0.6, "num_inference_steps": 4, **size
    }  # fmt: skip


def without_ftfy(monkeypatch):
    """Let Wan's video-to-video pipeline run where ftfy, without which it takes no prompt, is not installed."""
    from diffusers.pipelines.wan import pipeline_wan_video2video

    same = types.SimpleNamespace(fix_text=lambda text: text)
    monkeypatch.setattr(pipeline_wan_video2video, "ftfy", same, raising=False)


def inpainting(pipe, family):
    """The family's inpainting pipeline and what it is called with."""
    edge = _EDGE.get(family, 16)
    mask = (picture(2, channels=1, size=edge) > 0.5).float()
    return _sibling(pipe, _CLASSES[family].format("Inpaint")), {
        "image": picture(1, size=edge), "mask_image": mask, "strength": 0.6, "num_inference_steps": 4, **_sized(family)
    }  # fmt: skip


def controlled(pipe, family):
    """The family's ControlNet pipeline, its zero convolutions filled, and what it is called with."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = _control_net(pipe, family).eval()
        with torch.no_grad():
            for parameter in net.parameters():
                if not parameter.any():
                    parameter.normal_(0, 0.1)
    name = "StableDiffusion3ControlNetPipeline" if family == "sd3" else _CLASSES[family].format("ControlNet")
    key = "image" if family in ("unet", "sdxl") else "control_image"
    return _sibling(pipe, name, controlnet=net), {key: picture(3, size=_EDGE.get(family, 16)), **_sized(family)}


def _control_net(pipe, family):
    from diffusers import (
        ControlNetModel,
        FluxControlNetModel,
        QwenImageControlNetModel,
        SanaControlNetModel,
        SD3ControlNetModel,
        ZImageControlNetModel,
    )

    if family == "qwen-image":
        return QwenImageControlNetModel.from_transformer(
            pipe.transformer, num_layers=1, attention_head_dim=16, num_attention_heads=2
        )
    if family == "sana":
        names = set(inspect.signature(SanaControlNetModel.__init__).parameters)
        kept = {name: value for name, value in pipe.transformer.config.items() if name in names}
        return SanaControlNetModel(**kept | {"num_layers": 1})
    if family == "z-image":
        # The pipeline gives it the embedders and refiners of its own denoiser.
        return ZImageControlNetModel(
            control_layers_places=[0],
            control_refiner_layers_places=[0],
            control_in_dim=pipe.transformer.config.in_channels,
            dim=32,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
        )
    if family in ("unet", "sdxl"):
        # one downsampling, as in the tiny VAE
        return ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 8))
    if family == "sd3":
        config = dict(pipe.transformer.config) | {"num_layers": 1, "extra_conditioning_channels": 0}
        return SD3ControlNetModel.from_config(config)
    return FluxControlNetModel.from_transformer(
        pipe.transformer, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2
    )


def with_ip_adapter(pipe, family):
    """The pipeline with a random IP-Adapter loaded by its own method, and what it is called with."""
    generator = torch.Generator().manual_seed(4)
    width = 12

    def random(*shape):
        return torch.randn(shape, generator=generator) * 0.3

    if family == "sd3":
        return _with_sd3_ip_adapter(pipe, random, width)
    denoiser = pipe.transformer if family == "flux" else pipe.unet
    inner = denoiser.config.joint_attention_dim if family == "flux" else denoiser.config.cross_attention_dim
    adapter = {}
    if family == "flux":
        hidden = denoiser.inner_dim
        for number in range(len(denoiser.transformer_blocks)):
            for name in ("to_k_ip", "to_v_ip"):
                adapter[f"{number}.{name}.weight"] = random(hidden, inner)
                adapter[f"{number}.{name}.bias"] = random(hidden)
    else:
        crossed = [name for name in denoiser.attn_processors if name.endswith("attn2.processor")]
        for number, name in enumerate(crossed):
            attention = denoiser.get_submodule(name.removesuffix(".processor"))
            for part in ("to_k_ip", "to_v_ip"):
                adapter[f"{2 * number + 1}.{part}.weight"] = random(attention.to_k.out_features, inner)
    projection = {
        "proj.weight": random(4 * inner, width),
        "proj.bias": random(4 * inner),
        "norm.weight": torch.ones(inner),
        "norm.bias": torch.zeros(inner),
    }
    state = {"image_proj": projection, "ip_adapter": adapter}
    if family == "flux":
        pipe.load_ip_adapter(state, weight_name=None, image_encoder_pretrained_model_name_or_path=None)
        embeds = ("ip_adapter_image_embeds", "negative_ip_adapter_image_embeds")
        return pipe, {name: [random(len(PROMPTS), 1, width)] for name in embeds}
    pipe.load_ip_adapter(state, subfolder=None, weight_name=None, image_encoder_folder=None)
    return pipe, {"ip_adapter_image_embeds": [random(2 * len(PROMPTS), 1, width)]}


def _with_sd3_ip_adapter(pipe, random, width):
    from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
    from diffusers.models.embeddings import IPAdapterTimeImageProjection

    config = pipe.transformer.config
    inner, hidden = config.num_attention_heads * config.attention_head_dim, 64
    projection = IPAdapterTimeImageProjection(
        embed_dim=width, output_dim=inner, hidden_dim=hidden, heads=1, num_queries=2, timestep_in_dim=8
    )
    processor = SD3IPAdapterJointAttnProcessor2_0(
        hidden_size=inner,
        ip_hidden_states_dim=inner,
        head_dim=config.attention_head_dim,
        timesteps_emb_dim=hidden,
    )
    layers = range(len(pipe.transformer.attn_processors))
    state = {
        "image_proj": {name: random(*value.shape) for name, value in projection.state_dict().items()},
        "ip_adapter": {
            f"{number}.{name}": random(*value.shape)
            for number in layers
            for name, value in processor.state_dict().items()
        },
    }
    pipe.load_ip_adapter(state, weight_name=None, image_encoder_folder=None)
    # One picture for all prompts; the pipeline repeats it.
    return pipe, {"ip_adapter_image_embeds": random(2, 1, width)}


def add_lora(pipe, *, seed=5, name="other", scale=0.1):
    """Put a random LoRA on the attention projections of the denoiser, active, as `load_lora_weights` does: by PEFT."""
    from peft import LoraConfig, inject_adapter_in_model

    part = host_for(pipe).denoiser
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k", "to_v"])
    if hasattr(part, "add_adapter"):
        part.add_adapter(config, name)
    else:
        # diffusers loads no LoRA into PixArt; PEFT does.
        inject_adapter_in_model(config, part, name)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in part.named_parameters():
            if ".lora_" in key:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    if hasattr(part, "set_adapters"):
        part.set_adapters([name])
    return pipe


def merge_lora(pipe):
    """Put the LoRA into the weights and take its layers away."""
    from diffusers.utils.peft_utils import recurse_remove_peft_layers

    if hasattr(pipe, "fuse_lora"):
        pipe.fuse_lora()
        pipe.unload_lora_weights()
        return
    part = host_for(pipe).denoiser
    for module in part.modules():
        if hasattr(module, "base_layer"):
            module.merge()
    recurse_remove_peft_layers(part)
