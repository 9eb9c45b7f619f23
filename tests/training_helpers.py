"""A tiny random pipeline, a few captions, and one run of the training generator.

As a script (CHECKPOINT NUM_STEPS OUT) it trains with a checkpoint after every step, says which step it finished, and
writes the pairs to OUT at the end: `test_train_loop.py` kills it on the way.
"""

import sys

import torch
from safetensors.torch import save_file

from semipermeable import zoo
from semipermeable.concept import Concept
from semipermeable.hosts import host_for
from semipermeable.training import CaptionSet, TrainConfig, train

CONCEPT = Concept("cat", surrogate="animal", keep=("cat face",))
CAPTIONS = CaptionSet(
    names=("cat",),
    targets=("a neon icon of a cat", "a flat icon of a cat"),
    surrogates=("a neon icon of an animal", "a flat icon of an animal"),
    spans=("cat", "cat"),
    anchors=("a neon icon of a dog", "a flat icon of a car", "a flat icon of a cat face", "a tree"),
    twins=("a flat icon of a cat face",),
)
QUICK = {
    "negative_guidance": 1.0,
    "closed_form_keep": 0.1,
    "num_steps": 6,
    "sampling_steps": 4,
    "num_trajectories": 2,
    "num_anchors": 2,
    "batch_size": 2,
}


def quick(preset="fast", **overrides):
    """A configuration of a few small steps."""
    return TrainConfig.from_preset(preset, **{**QUICK, **overrides})


def make_tiny_pipe(pipe, dim=None):
    """The bundled pipeline with a small random UNet in the place of its own, for text states of `dim` dimensions."""
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            layers_per_block=1,
            block_out_channels=(16, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=dim or pipe.text_encoder.config.hidden_size,
            attention_head_dim=4,
            norm_num_groups=8,
        )
    tiny = type(pipe)(**{**pipe.components, "unet": unet.eval()}, requires_safety_checker=False)
    tiny.set_progress_bar_config(disable=True)
    return tiny


def finish(host, config, *, seed=0, captions=CAPTIONS):
    """Return (figures of every step, the trained result)."""
    steps = train(host, CONCEPT, captions, config, seed=seed)
    figures = []
    while True:
        try:
            figures.append(next(steps))
        except StopIteration as end:
            return figures, end.value


if __name__ == "__main__":
    pipe = make_tiny_pipe(zoo.load("emoji"))
    config = quick(num_steps=int(sys.argv[2]), checkpoint=sys.argv[1], checkpoint_every=1, closed_form=False)
    steps = train(host_for(pipe), CONCEPT, CAPTIONS, config, seed=0)
    while True:
        try:
            print(next(steps).step, flush=True)  # noqa: T201 - the test that started this process reads it
        except StopIteration as end:
            pairs = end.value.pairs
            break
    tensors = {f"{name}/{label}": t for name, pair in pairs.items() for label, t in zip("uv", pair, strict=True)}
    save_file(tensors, sys.argv[3])
