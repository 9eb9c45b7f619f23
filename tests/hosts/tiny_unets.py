"""Tiny random Stable Diffusion 2.x and SDXL pipelines with the bundled model's tokenizer."""

import copy

import torch


def _text_config(tokenizer, dim, **changes):
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=dim,
        intermediate_size=2 * dim,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **changes,
    )


def padded_with_zero(tokenizer):
    """A copy that pads with token 0, as OpenCLIP's tokenizers do ("!"), not with the end token."""
    other = copy.deepcopy(tokenizer)
    other.pad_token = other.convert_ids_to_tokens(0)
    return other


def _vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )


def _unet(dim, **changes):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=dim,
        attention_head_dim=(2, 4),
        norm_num_groups=8,
        use_linear_projection=True,
        **changes,
    )


def make_sd2(tokenizer, prediction_type, *, time_cond_proj_dim=None):
    """Stable Diffusion 2.x: OpenCLIP's activation and padding, linear projections; 2.1 has v-prediction."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        padding = padded_with_zero(tokenizer)
        return StableDiffusionPipeline(
            vae=_vae(),
            text_encoder=CLIPTextModel(_text_config(padding, 24, hidden_act="gelu")).eval(),
            tokenizer=padding,
            unet=_unet(24, time_cond_proj_dim=time_cond_proj_dim).eval(),
            scheduler=DDIMScheduler(
                prediction_type=prediction_type,
                beta_schedule="scaled_linear",
                clip_sample=False,
                set_alpha_to_one=False,
                steps_offset=1,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def make_lcm(tokenizer):
    """A latent consistency model: the guidance scale is a time condition, and there are no unconditional rows."""
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler

    whole = make_sd2(tokenizer, "epsilon", time_cond_proj_dim=8)
    parts = whole.components | {"scheduler": LCMScheduler(clip_sample=False)}
    return LatentConsistencyModelPipeline(**parts, requires_safety_checker=False)


def make_sdxl(tokenizer, *, scheduler=None, force_zeros=True):
    """Stable Diffusion XL: two encoders of different width and padding, pooled text and time ids."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    with torch.random.fork_rng():
        torch.manual_seed(0)
        second = padded_with_zero(tokenizer)
        return StableDiffusionXLPipeline(
            vae=_vae(),
            text_encoder=CLIPTextModel(_text_config(tokenizer, 16, hidden_act="quick_gelu")).eval(),
            text_encoder_2=CLIPTextModelWithProjection(
                _text_config(second, 24, hidden_act="gelu", projection_dim=20)
            ).eval(),
            tokenizer=tokenizer,
            tokenizer_2=second,
            unet=_unet(
                16 + 24,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=20 + 6 * 8,
            ).eval(),
            scheduler=scheduler or EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1),
            force_zeros_for_empty_prompt=force_zeros,
        )
