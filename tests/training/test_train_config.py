import dataclasses

import pytest

from semipermeable.errors import ConfigError
from semipermeable.training import TrainConfig, presets


def test_presets_are_usable():
    assert presets() == ("instant", "fast", "paper")
    assert TrainConfig.from_preset("instant") == TrainConfig(num_steps=0), '"fast" without its steps'
    assert TrainConfig.from_preset("fast") == TrainConfig()
    assert TrainConfig().eta("object") is TrainConfig().eta("style") is None
    for preset in presets():
        TrainConfig.from_preset(preset)


def test_the_papers_hyper_parameters():
    paper = TrainConfig.from_preset("paper")
    assert (paper.rank, paper.num_steps, paper.batch_size, paper.num_anchors) == (1, 3000, 1, 4)
    assert (paper.learning_rate, paper.schedule, paper.warmup_steps) == (1e-4, "cosine_restarts", 500)
    assert (paper.anchor_weight, paper.anchor_power) == (1e3, 1.0)
    assert paper.eta("object") == paper.eta("style") == 1.0
    assert (paper.sampling_steps, paper.closed_form, paper.reuse_trajectories) == (30, False, False)


def test_the_reach_is_a_setting_only_where_an_eta_is_read_off_the_text():
    given = TrainConfig.from_preset("paper")
    assert "reach" not in given.to_json()
    assert given.to_json() == TrainConfig.from_preset("paper", reach=9.0).to_json()
    for name in ("negative_guidance", "style_negative_guidance"):
        read = TrainConfig.from_preset("paper", **{name: None})
        assert (read.to_json()[name], read.to_json()["reach"]) == (None, read.reach)


def test_sparing_is_a_setting_only_where_something_is_spared():
    """Results and membranes made before there was such a setting are those of today's without it."""
    assert "closed_form_spare" not in TrainConfig().to_json()
    assert TrainConfig(closed_form_spare=0.9).to_json() == {**TrainConfig().to_json(), "closed_form_spare": 0.9}


def test_a_sibling_is_a_setting_only_where_one_is_taken():
    """So are those before objects fell to siblings."""
    assert TrainConfig().to_json()["sibling_surrogate"] is True
    assert "sibling_surrogate" not in TrainConfig.from_preset("paper").to_json()
    without = {key: value for key, value in TrainConfig().to_json().items() if key != "sibling_surrogate"}
    assert TrainConfig(sibling_surrogate=False).to_json() == without


def test_it_is_frozen_and_keyword_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().rank = 2
    with pytest.raises(TypeError):
        TrainConfig(1)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("rank", 0, "rank must be at least 1, found 0"),
        ("rank", 1.5, "rank must be a whole number"),
        ("num_steps", True, "num_steps must be a whole number"),
        ("learning_rate", 0.0, "learning_rate must be above 0"),
        ("learning_rate", float("nan"), "learning_rate must be a finite number"),
        ("anchor_weight", -1.0, "anchor_weight must be at least 0"),
        ("negative_guidance", -1.0, "negative_guidance must be at least 0"),
        ("reach", 0.0, "reach must be above 0"),
        ("twin_share", 1.5, r"twin_share must be in \[0, 1\]"),
        ("closed_form_spare", 1.5, r"closed_form_spare must be in \[0, 1\], found 1.5"),
        ("closed_form_spare", "much", "closed_form_spare must be a finite number, found 'much'"),
        ("dtype", "fp32", "dtype must be one of None, 'bf16', 'fp16'"),
        ("schedule", "linear", "schedule must be one of 'cosine_restarts'"),
        ("closed_form", "false", "closed_form must be true or false, found 'false'"),
        ("checkpoint", 3, "checkpoint must be a path as text, found 3"),
        ("preview_prompts", 5, "preview_prompts must be a list of texts, none of them empty, found 5"),
        ("preview_prompts", "a cat", "preview_prompts must be a list of texts"),
        ("preview_prompts", ("a cat", " "), "preview_prompts must be a list of texts"),
        ("preview_prompts", [3], "preview_prompts must be a list of texts"),
        pytest.param(
            "num_steps", 10**400, r"num_steps must be below 2\*\*63, found a number of 1329 bits", id="num_steps"
        ),
        pytest.param("learning_rate", 10**400, r"learning_rate must be below 2\*\*63", id="learning_rate"),
        ("preview", "x", "preview must be a function of step and pictures, found 'x'"),
    ],
)
def test_unusable_values_are_named(field, value, says):
    with pytest.raises(ConfigError, match=says):
        TrainConfig(**{field: value})


def test_unknown_names_suggest_close_ones():
    with pytest.raises(ConfigError, match="unknown preset 'fsat'; did you mean 'fast'"):
        TrainConfig.from_preset("fsat")
    with pytest.raises(ConfigError, match="unknown training setting 'anchor_wieght'; did you mean 'anchor_weight'"):
        TrainConfig.from_preset("fast", anchor_wieght=3)


def test_json_leaves_out_where_files_go():
    a = TrainConfig(checkpoint="a", preview_every=3, tensorboard="b").to_json()
    assert a == TrainConfig().to_json()
    assert "checkpoint" not in a
    assert a["rank"] == 1
