"""Tiny random pipelines of the families that come with large language models: real classes, small widths."""

import torch

from hosts.tiny_dits import WORDS, lively, unigram


def umt5(dim):
    """A UMT5 encoder and its tokenizer."""
    from transformers import T5TokenizerFast, UMT5Config, UMT5EncoderModel

    tokenizer = T5TokenizerFast(vocab=unigram(), extra_ids=0, model_max_length=512)
    config = UMT5Config(
        vocab_size=len(tokenizer),
        d_model=dim,
        d_kv=8,
        d_ff=2 * dim,
        num_layers=1,
        num_heads=1,
        pad_token_id=0,
        eos_token_id=1,
        is_encoder_decoder=False,
        use_cache=False,
    )
    return UMT5EncoderModel(config).eval(), tokenizer


def make_wan(*, boundary_ratio=None, expand_timesteps=False):
    """Wan 2.1; with a boundary 2.2 with its two denoisers."""
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

    def denoiser():
        return lively(
            WanTransformer3DModel(
                patch_size=(1, 2, 2),
                num_attention_heads=2,
                attention_head_dim=12,
                in_channels=4,
                out_channels=4,
                text_dim=24,
                freq_dim=16,
                ffn_dim=32,
                num_layers=2,
                cross_attn_norm=True,
                qk_norm="rms_norm_across_heads",
                rope_max_seq_len=16,
            ),
            1.6,
        )

    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder, words = umt5(24)
        return WanPipeline(
            tokenizer=words,
            text_encoder=encoder,
            vae=AutoencoderKLWan(
                base_dim=3,
                z_dim=4,
                dim_mult=[1, 1, 1, 1],
                num_res_blocks=1,
                temperal_downsample=[False, True, True],
                latents_mean=[0.0] * 4,
                latents_std=[1.0] * 4,
            ).eval(),
            scheduler=UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, num_train_timesteps=1000
            ),
            transformer=denoiser(),
            transformer_2=None if boundary_ratio is None else denoiser(),
            boundary_ratio=boundary_ratio,
            expand_timesteps=expand_timesteps,
        )


CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def bpe(texts, *, size, special, spaces):
    """Vocabulary and merges of a byte-pair encoding; with `spaces` of Gemma's kind, else of bytes, Qwen's."""
    import json

    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    if spaces:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        alphabet = []
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def qwen_tokenizer(*texts):
    """Qwen's tokenizer with a small vocabulary and a short chat template."""
    from transformers import Qwen2Tokenizer

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab, merges = bpe([*WORDS * 5, "user\nassistant\nsystem\n", *texts], size=440, special=special, spaces=False)
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges, extra_special_tokens=special[1:])
    tokenizer.chat_template = CHAT
    return tokenizer


def make_qwen_image():
    """Qwen-Image."""
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    with torch.random.fork_rng():
        torch.manual_seed(0)
        words = qwen_tokenizer()
        config = Qwen2_5_VLConfig(
            text_config={
                "vocab_size": len(words),
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
                "use_cache": False,
                "bos_token_id": None,
                "eos_token_id": 0,
            },
            vision_config={
                "depth": 1,
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_heads": 2,
                "out_hidden_size": 16,
            },
        )
        return QwenImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            vae=AutoencoderKLQwenImage(
                base_dim=4,
                z_dim=4,
                dim_mult=[1, 1, 1],
                num_res_blocks=1,
                temperal_downsample=[False, True],
                latents_mean=[0.0] * 4,
                latents_std=[1.0] * 4,
            ).eval(),
            text_encoder=Qwen2_5_VLForConditionalGeneration(config).eval(),
            tokenizer=words,
            transformer=lively(
                QwenImageTransformer2DModel(
                    patch_size=2,
                    in_channels=16,
                    out_channels=4,
                    num_layers=2,
                    attention_head_dim=16,
                    num_attention_heads=2,
                    joint_attention_dim=16,
                    axes_dims_rope=(4, 6, 6),
                ),
                1.6,
            ),
        )


def make_sana():
    """Sana."""
    import inspect

    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
    from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

    instruction = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        texts = [f" {line}" for line in WORDS] + ["\n".join(instruction)]
        vocab, merges = bpe(texts * 5, size=1000, special=special, spaces=True)
        words = GemmaTokenizer(vocab=vocab, merges=merges, add_bos_token=True)
        config = Gemma2Config(
            vocab_size=len(words),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            use_cache=False,
        )
        return SanaPipeline(
            tokenizer=words,
            text_encoder=Gemma2Model(config).eval(),
            vae=AutoencoderDC(
                latent_channels=4,
                attention_head_dim=2,
                encoder_block_types="ResBlock",
                decoder_block_types="ResBlock",
                encoder_block_out_channels=(8, 8, 8),
                decoder_block_out_channels=(8, 8, 8),
                encoder_layers_per_block=(1, 1, 1),
                decoder_layers_per_block=(1, 1, 1),
                encoder_qkv_multiscales=((), (), ()),
                decoder_qkv_multiscales=((), (), ()),
                downsample_block_type="conv",
                upsample_block_type="interpolate",
            ).eval(),
            transformer=lively(
                SanaTransformer2DModel(
                    in_channels=4,
                    out_channels=4,
                    num_layers=2,
                    num_attention_heads=2,
                    attention_head_dim=8,
                    num_cross_attention_heads=2,
                    cross_attention_head_dim=8,
                    cross_attention_dim=16,
                    caption_channels=16,
                    sample_size=8,
                ),
                1.6,
            ),
            scheduler=DPMSolverMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            ),
        )


def make_z_image():
    """Z-Image."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    with torch.random.fork_rng():
        torch.manual_seed(0)
        words = qwen_tokenizer()
        config = Qwen3Config(
            vocab_size=len(words),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            use_cache=False,
            bos_token_id=None,
            eos_token_id=0,
        )
        transformer = ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=16,
            axes_dims=[4, 6, 6],
            axes_lens=[128, 32, 32],
        )
        with torch.no_grad():
            # Fresh pad tokens are uninitialised memory.
            transformer.x_pad_token.fill_(0.1)
            transformer.cap_pad_token.fill_(0.1)
        return ZImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=AutoencoderKL(
                block_out_channels=(8,),
                down_block_types=("DownEncoderBlock2D",),
                up_block_types=("UpDecoderBlock2D",),
                latent_channels=4,
                norm_num_groups=4,
                use_quant_conv=False,
                use_post_quant_conv=False,
                shift_factor=0.1,
                scaling_factor=1.2,
            ).eval(),
            text_encoder=Qwen3Model(config).eval(),
            tokenizer=words,
            transformer=lively(transformer, 1.3),
        )
