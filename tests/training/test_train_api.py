import sys

import pytest
import torch

from semipermeable import __version__, attach, erase, load, zoo
from semipermeable.errors import AttachError, ConfigError, OutputError
from semipermeable.files.native import to_bytes
from semipermeable.hosts import host_for
from semipermeable.training import TrainConfig, api, enrich, erase_steps
from semipermeable.training.surrogates import candidates

from training_helpers import quick


def test_erase_returns_a_membrane_with_its_story_and_saves_it(pipe, tmp_path, capsys):
    path = tmp_path / "cat.safetensors"
    config = quick(num_steps=2)
    membrane = erase(pipe, "cat", config=config, seed=7, out=path)
    story = membrane.provenance
    host = host_for(pipe)
    assert membrane.concept.surrogate in candidates(enrich("cat", zoo.spec("emoji")), zoo.spec("emoji"))
    assert (story.base_model, story.seed, story.package_version) == ("zoo:emoji", 7, __version__)
    assert (story.base_hash, story.text_encoder_hash) == (host.base_hash(), host.text_encoder_hash())
    assert story.training == config.to_json()
    assert story.metrics["steps"] == 2
    assert membrane.gate is not None
    assert membrane.gate.kind == "transport"
    again = load(path)
    assert all(torch.equal(again.pairs[name][0], u) for name, (u, _) in membrane.pairs.items())
    assert "erasing" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_progress_false_prints_nothing(tiny_pipe, capsys):
    erase(tiny_pipe, "cat", config=quick(num_steps=0, closed_form=False, anchors="gaussian"), progress=False)
    captured = capsys.readouterr()
    assert "erasing" not in captured.out + captured.err


def test_unusable_requests_are_refused_before_training(tiny_pipe, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="unknown preset 'papr'; did you mean 'paper'"):
        erase(tiny_pipe, "cat", preset="papr")
    with pytest.raises(ConfigError, match="does not exist; create it first"):
        erase(tiny_pipe, "cat", out=tmp_path / "missing" / "cat.safetensors", config=quick(num_steps=0))
    monkeypatch.setattr(api, "erase_steps", lambda *_, **__: pytest.fail("training began"))
    with pytest.raises(OutputError, match=r"cat\.pt': a membrane file ends in \.safetensors; change the name"):
        erase(tiny_pipe, "cat", out=tmp_path / "cat.pt", config=quick(num_steps=0))


def test_a_pipeline_that_holds_membranes_is_refused(tiny_pipe):
    membrane = erase(tiny_pipe, "cat", config=quick(num_steps=0, closed_form=False), progress=False)
    with attach(tiny_pipe, membrane, "open"), pytest.raises(AttachError, match="detach"):
        erase(tiny_pipe, "dog", config=quick(num_steps=0), progress=False)


def test_a_run_killed_while_its_gate_was_fitted_ends_with_the_same_bytes(gateless, tiny_pipe, tmp_path, monkeypatch):
    config = quick(num_steps=2, checkpoint=str(tmp_path / "state.safetensors"))

    def killed(*_arguments, **_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(api, "fit_gate", killed)
        with pytest.raises(KeyboardInterrupt):
            erase(tiny_pipe, "cat", config=config, progress=False)
    resumed = erase(tiny_pipe, "cat", config=config, progress=False)
    assert resumed.provenance.metrics.keys() >= {"erasing_loss", "anchoring_loss"}
    assert to_bytes(resumed) == to_bytes(erase(tiny_pipe, "cat", config=quick(num_steps=2), progress=False))


def test_missing_tensorboard_names_the_extra(tiny_pipe, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r'pip install "semipermeable\[tensorboard\]"'):
        erase(tiny_pipe, "cat", config=quick(tensorboard=str(tmp_path)), progress=False)


def test_tensorboard_gets_both_losses(tiny_pipe, tmp_path):
    pytest.importorskip("tensorboard")
    erase(tiny_pipe, "cat", config=quick(num_steps=2, tensorboard=str(tmp_path)), progress=False)
    content = next(tmp_path.iterdir()).read_bytes()
    for name in (b"training/erasing_loss", b"training/anchoring_loss"):
        assert name in content


@pytest.mark.slow
def test_the_closed_form_alone_erases_the_cat_and_keeps_its_style(pipe, judge):
    spec = zoo.spec("emoji")
    prompts = [spec.caption("cat", style) for style in spec.styles[:6]]
    noise = torch.randn(len(prompts), *host_for(pipe).latent_shape(), generator=torch.Generator().manual_seed(1))

    def cats_and_styles():
        options = {"num_inference_steps": 15, "guidance_scale": 4.0, "output_type": "pt"}
        verdict = judge(pipe(prompts, latents=noise, **options).images)
        cat = judge.objects.index("cat")
        styles = [judge.styles[i] == style for i, style in zip(verdict.style.tolist(), spec.styles, strict=False)]
        return int((verdict.object == cat).sum()), sum(styles)

    before_cats, before_styles = cats_and_styles()
    assert before_cats >= 4
    membrane = erase(pipe, "cat", config=TrainConfig.from_preset("fast", num_steps=0), progress=False)
    with attach(pipe, membrane, "open"):
        cats, styles = cats_and_styles()
    assert cats <= 1
    assert styles >= before_styles - 1


def test_steps_can_be_driven_by_hand(tiny_pipe):
    steps = erase_steps(tiny_pipe, "cat", config=quick(num_steps=2), seed=0)
    assert [next(steps).step, next(steps).step] == [1, 2]
    with pytest.raises(StopIteration) as end:
        next(steps)
    assert end.value.value.name == "cat"
