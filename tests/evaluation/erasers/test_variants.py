"""Settings in spec strings, and the tuned settings of rivals."""

import json
from pathlib import Path

import pytest

from semipermeable.errors import ConfigError, UnknownNameError
from semipermeable.evaluation.erasers import eraser, registry
from semipermeable.evaluation.erasers.tuned import tuned_settings
from semipermeable.evaluation.erasers.variants import read_variant
from semipermeable.training import TrainConfig

SEARCHED = json.loads(
    (Path(__file__).parents[3] / "benchmarks" / "results" / "tune_rivals.json").read_text(encoding="utf-8")
)


def test_fields_are_read_as_their_own_types():
    esd = eraser("esd-x:num_steps=7, learning_rate=1e-3 ,negative_guidance=2")
    assert (esd.settings.num_steps, esd.settings.learning_rate, esd.settings.negative_guidance) == (7, 1e-3, 2.0)
    assert isinstance(esd.settings.negative_guidance, float)
    assert esd.name == "esd-x:num_steps=7,learning_rate=1e-3,negative_guidance=2"
    spm = eraser("spm-open:rank=2,anchors=gaussian,closed_form=false,dtype=bf16,checkpoint=null")
    assert (spm.training.rank, spm.training.anchors, spm.training.closed_form) == (2, "gaussian", False)
    assert spm.training.dtype == "bf16"


def test_a_later_word_wins_and_the_settings_given_stay_as_they_were():
    default = eraser("uce").settings
    found = read_variant("uce", ["tuned", "ridge=3"], default, {"tuned": {"ridge": 7.0, "keep_weight": 2}})
    assert (found.ridge, found.keep_weight) == (3.0, 2.0)
    assert default == eraser("uce").settings


@pytest.mark.parametrize("name", ["spm", "spm-open"])
def test_a_preset_is_one_word(name):
    assert eraser(f"{name}:instant").training == TrainConfig.from_preset("instant")
    assert eraser(f"{name}:instant,rank=2").training == TrainConfig.from_preset("instant", rank=2)
    assert eraser(name).training == TrainConfig.from_preset("fast")


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        ("uce:rigde=1", ConfigError, "unknown setting of the eraser 'uce' 'rigde'; did you mean 'ridge'"),
        ("uce:ridge=high", ConfigError, "ridge is 0.5 by default and must be of type float, found 'high'"),
        ("uce:ridge=null", ConfigError, "cannot be null"),
        ("esd-u:num_steps=1.5", ConfigError, "num_steps is 1000 by default and must be of type int, found 1.5"),
        ("spm:rank=0", ConfigError, "rank must be at least 1, found 0"),
        ("uce:fast", UnknownNameError, "after 'uce' comes .*a setting such as keep_weight=…, found 'fast'"),
        ("spm:tuned", UnknownNameError, "after 'spm' comes 'instant' or a setting such as rank=…, found 'tuned'"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(spec, kind, message):
    with pytest.raises(kind, match=message):
        eraser(spec)


def test_tuned_settings_are_the_best_that_the_search_found():
    tuned = tuned_settings()
    for name, spec in SEARCHED["best"].items():
        assert max(SEARCHED["tried"][name], key=lambda one: one["harmonic"])["eraser"] == spec
        best, made = eraser(spec), eraser(f"{name}:tuned") if name in tuned else eraser(name)
        assert getattr(made, "settings", None) == getattr(best, "settings", None)
        assert getattr(made, "training", None) == getattr(best, "training", None)
    assert set(tuned) <= {*SEARCHED["best"], "gated-uce"}
    assert tuned.get("gated-uce") == tuned.get("uce")


def test_only_rivals_have_tuned_settings_and_their_cards_show_them():
    assert not {"spm", "spm-open"} & set(tuned_settings())
    table = registry.card_table()
    for name, fields in tuned_settings().items():
        assert f"`{name}:tuned`: " in table
        assert all(f"{field} {value}" in table for field, value in fields.items())
