import json

import pytest
import torch

from semipermeable.concept import Concept
from semipermeable.errors import CalibrationError
from semipermeable.permeability import Calibration, Example, fit, negatives, wordings

from .fakes import DIM, encoder

CAT = Concept("cat")
VOCABULARY = (
    "dog",
    "wolf",
    "lion",
    "tree",
    "house",
    "car",
    "rose",
    "apple",
    "neon",
    "flat",
    "cat face",
    "caat",
    "guitar",
)


def fitted(concept=CAT, seed=0, vocabulary=VOCABULARY, encode=None, **replace):
    sides = {"positives": wordings(concept), "negatives": negatives(concept, vocabulary)} | replace
    generator = torch.Generator().manual_seed(seed)
    return fit(concept, encode or encoder(), encoder_hash="abc", generator=generator, **sides)


@pytest.fixture(scope="module")
def calibration():
    return fitted()


def test_fits_an_encoder_that_separates_words(calibration):
    assert calibration.threshold is not None
    assert calibration.held_out_open_rate > 0.5
    assert calibration.held_out_false_open_rate == 0.0
    assert calibration.keep == ("cat face",)
    assert calibration.known == ("caat",)
    assert calibration.encoder_hash == "abc"
    assert calibration.num_positives == len(wordings(CAT))
    assert calibration.weight.shape == (DIM,)


def test_no_negative_reaches_the_threshold_with_the_stored_probe(calibration):
    apart = [e.text for e in negatives(CAT, VOCABULARY) if "cat" not in e.text.split()]
    scores = [calibration.probe.score(p) for p in encoder()(apart)]
    assert max(scores) < calibration.threshold


def test_the_ending_of_the_names_plural_makes_no_negative_one_that_carries_the_name():
    # In a small vocabulary "cats" and "two dogs" end in the same token; left out of the fit, every plural opened.
    encode = encoder(endings=True)
    gate = fitted(encode=encode)
    assert gate.threshold is not None
    plurals = [e.text for e in negatives(CAT, VOCABULARY) if " cat" not in f" {e.text}" and "dogs" in e.text]
    assert plurals
    assert (
        max(gate.probe.score(prompt) for prompt in encode([*plurals, "two balls", "boats on lakes"])) < gate.threshold
    )


def test_same_seed_same_gate(calibration):
    again = fitted()
    assert torch.equal(again.weight, calibration.weight)
    assert again.to_parts()[0] == calibration.to_parts()[0]


def test_round_trip(calibration):
    settings, tensors = calibration.to_parts()
    back = Calibration.from_parts(json.loads(json.dumps(settings)), tensors)
    assert back.to_parts()[0] == settings
    torch.testing.assert_close(back.weight, calibration.weight, rtol=0, atol=0)


def test_an_encoder_that_cannot_tell_apart_switches_the_probe_off():
    blind = encoder(dict.fromkeys(("cat", "cats", "dog", "dogs", "wolf", "lion", "tree"), "same"))
    gate = fitted(encode=blind)
    assert gate.threshold is None
    assert gate.held_out_open_rate == 0.0
    assert Calibration.from_parts(*gate.to_parts()).threshold is None


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("version", 7, "'version' is 7"),
        ("bias", "x", "'bias' must be a finite number"),
        ("bias", float("nan"), "'bias' must be a finite number"),
        ("threshold", True, "'threshold' must be a finite number"),
        ("keep", "cat face", "'keep' must be a list of texts"),
        ("known", [3], "'known' must be a list of texts"),
        ("encoder_hash", None, "'encoder_hash' must be text"),
        ("num_positives", -1, "'num_positives' must be a whole number"),
        ("held_out_open_rate", 1.5, "'held_out_open_rate' must be a number in"),
        ("surprise", 1, "'surprise' is missing or not known"),
    ],
)
def test_damaged_settings_are_named(calibration, key, value, says):
    settings, tensors = calibration.to_parts()
    with pytest.raises(CalibrationError, match=says):
        Calibration.from_parts(settings | {key: value}, tensors)


def test_damaged_tensors_are_named(calibration):
    settings, tensors = calibration.to_parts()
    with pytest.raises(CalibrationError, match="tensors"):
        Calibration.from_parts(settings, {})
    for bad in (torch.zeros(2, 2), torch.full((DIM,), float("nan")), torch.zeros(DIM, dtype=torch.int64)):
        with pytest.raises(CalibrationError, match="'weight' must be finite"):
            Calibration.from_parts(settings, tensors | {"weight": bad})
    del settings["bias"]
    with pytest.raises(CalibrationError, match="'bias' is missing"):
        Calibration.from_parts(settings, tensors)


def test_helpful_errors_of_fit():
    with pytest.raises(CalibrationError, match="at least 6 positives of 3 templates, found 1 of 1"):
        fitted(positives=wordings(CAT)[:1])
    meant = [*negatives(CAT, VOCABULARY), Example("my cat on a mat", "mat", "t")]
    with pytest.raises(CalibrationError, match="'my cat on a mat' names the concept"):
        fitted(negatives=meant)
    strangers = [Example(f"thing {i}", "thing", f"t{i}") for i in range(9)]
    with pytest.raises(CalibrationError, match=r"too few templates|no positive contains"):
        fitted(positives=strangers)
