"""Tiny random transformer pipelines: real classes, small widths, tokenizers made from a few words."""

import torch

from hosts.tiny_unets import _text_config, padded_with_zero

WORDS = (
    "a neon icon of a cat in a tree",
    "a neon icon of a dog",
    "a photo of a cat",
    "a photo of a dog in a garden",
    "an animal, a painting, a drawing of",
)


def unigram():
    """Pieces and scores of a small sentencepiece vocabulary."""
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(WORDS * 5, trainer)
    return [tuple(entry) for entry in json.loads(tokenizer.to_str())["model"]["vocab"]]


def t5(dim, *, length=32):
    """A T5 encoder and its tokenizer."""
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast

    tokenizer = T5TokenizerFast(vocab=unigram(), extra_ids=0, model_max_length=length)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=dim,
        d_kv=8,
        d_ff=2 * dim,
        num_layers=2,
        num_heads=2,
        pad_token_id=0,
        eos_token_id=1,
        is_encoder_decoder=False,
        use_cache=False,
    )
    return T5EncoderModel(config).eval(), tokenizer


def _vae(channels, scale=1):
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8,) * scale,
        down_block_types=("DownEncoderBlock2D",) * scale,
        up_block_types=("UpDecoderBlock2D",) * scale,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.1,
        scaling_factor=1.2,
    )


def lively(denoiser, factor):
    """Scale up the matrices of a fresh denoiser: with its own small ones, pictures hardly depend on the text."""
    with torch.no_grad():
        for parameter in denoiser.parameters():
            if parameter.dim() == 2:
                parameter.mul_(factor)
    return denoiser.eval()


def make_flux(tokenizer, *, guidance_embeds=True):
    """FLUX.1 dev (guidance embedded) or schnell."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder, words = t5(24)
        return FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=guidance_embeds),
            vae=_vae(4),
            text_encoder=CLIPTextModel(_text_config(tokenizer, 16)).eval(),
            tokenizer=tokenizer,
            text_encoder_2=encoder,
            tokenizer_2=words,
            transformer=lively(
                FluxTransformer2DModel(
                    in_channels=16,
                    num_layers=1,
                    num_single_layers=1,
                    attention_head_dim=16,
                    num_attention_heads=2,
                    joint_attention_dim=24,
                    pooled_projection_dim=16,
                    axes_dims_rope=(4, 6, 6),
                    guidance_embeds=guidance_embeds,
                ),
                1.6,
            ),
        )


def make_sd3(tokenizer):
    """Stable Diffusion 3."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection

    with torch.random.fork_rng():
        torch.manual_seed(0)
        second = padded_with_zero(tokenizer)
        encoder, words = t5(32)
        return StableDiffusion3Pipeline(
            transformer=lively(
                SD3Transformer2DModel(
                    sample_size=8,
                    patch_size=2,
                    in_channels=4,
                    out_channels=4,
                    num_layers=2,
                    attention_head_dim=8,
                    num_attention_heads=2,
                    joint_attention_dim=32,
                    caption_projection_dim=16,
                    pooled_projection_dim=22,
                    pos_embed_max_size=8,
                ),
                1.6,
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=_vae(4),
            text_encoder=CLIPTextModelWithProjection(_text_config(tokenizer, 12, projection_dim=10)).eval(),
            tokenizer=tokenizer,
            text_encoder_2=CLIPTextModelWithProjection(_text_config(second, 16, projection_dim=12)).eval(),
            tokenizer_2=second,
            text_encoder_3=encoder,
            tokenizer_3=words,
        )


def make_pixart():
    """PixArt-Σ."""
    from diffusers import DDIMScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder, words = t5(24)
        return PixArtSigmaPipeline(
            tokenizer=words,
            text_encoder=encoder,
            vae=_vae(4),
            transformer=PixArtTransformer2DModel(
                sample_size=8,
                patch_size=2,
                in_channels=4,
                out_channels=8,
                num_layers=2,
                attention_head_dim=8,
                num_attention_heads=2,
                cross_attention_dim=16,
                caption_channels=24,
                use_additional_conditions=False,
            ).eval(),
            scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        )
