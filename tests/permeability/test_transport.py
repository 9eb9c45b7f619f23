"""Laws of the default rule, on an encoder of words and fitted with one where the fit matters."""

import dataclasses
import unicodedata

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semipermeable.concept import Concept
from semipermeable.errors import CalibrationError
from semipermeable.membrane import GateState
from semipermeable.permeability import EncodedPrompt, Transport, fit, negatives, wordings
from semipermeable.permeability.transport import visible

from .fakes import DIM, encode_one, encoder, gated, id_of

CAT = Concept("cat", aliases=("kitten",), keep=("cat face", "tiger"))
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
    "cat tree",
    "guitar",
    "key",
)


def decide(concept, *texts, gate=None, encode=None):
    encode = encode or encoder()
    concept = concept if isinstance(concept, Concept) else Concept(concept)
    return Transport().decide(encode(list(texts)), gated(concept, gate, encode))


def gamma(concept, text, **more):
    return decide(concept, text, **more)[0].gamma


@pytest.fixture(scope="module")
def synonyms():
    """An encoder to which "moggy" is nearly the same as "cat"."""
    return encoder({"moggy": "cat"})


@pytest.fixture(scope="module")
def gate(synonyms):
    calibration = fit(
        CAT,
        synonyms,
        positives=wordings(CAT),
        negatives=negatives(CAT, VOCABULARY),
        encoder_hash="words",
        generator=torch.Generator().manual_seed(0),
    )
    return GateState("transport", *calibration.to_parts())


@pytest.mark.parametrize(
    "text", ["a cat", "A CAT!", "cats", "a kitten on a mat", "a cta", "a cat beside a cat face", "cat, face"]
)
def test_opens_on_names_and_aliases(text, gate):
    assert gamma(CAT, text) == 1.0
    assert gamma(CAT, text, gate=gate) == 1.0


@pytest.mark.parametrize(
    "text", ["", "  ", "a dog", "a cat face", "Cat-Faces", "a tiger", "a catfish", "a cat burglar", "!!!", "a car"]
)
def test_closed_elsewhere(text, gate):
    assert gamma(CAT, text) == 0.0
    assert gamma(CAT, text, gate=gate) == 0.0


def test_fitted_phrases_are_kept(gate):
    assert gamma(CAT, "a cat tree") == 1.0
    assert gamma(CAT, "a cat tree", gate=gate) == 0.0
    assert gamma("dog", "a hot dog") == 0.0


def test_the_probe_opens_on_what_the_encoder_takes_for_the_concept(gate, synonyms):
    [closed] = decide(CAT, "a moggy", encode=synonyms)
    assert closed.gamma == 0.0
    assert "not calibrated" in closed.reason
    [opened] = decide(CAT, "a moggy", gate=gate, encode=synonyms)
    assert opened.gamma == 1.0
    assert opened.similarity >= opened.threshold
    [other] = decide(CAT, "a ferret", gate=gate, encode=synonyms)
    assert other.gamma == 0.0
    assert other.similarity < other.threshold
    assert "below" in other.reason


def test_a_phrase_to_keep_silences_the_probe(gate, synonyms):
    assert gamma(CAT, "a tiger and a moggy", gate=gate, encode=synonyms) == 0.0


def test_a_slip_that_is_a_token_of_the_encoder_is_a_word():
    assert gamma("cat", "a catt") == 0.0
    assert gamma("cat", "a cta") == 1.0


def test_a_name_inside_another_word_never_asks_the_probe(gate):
    pieces = EncodedPrompt("zocat", (id_of("zo"), id_of("cat</w>")), ("zo", "cat</w>"), encode_one("a cat").states)
    [decision] = Transport().decide([pieces], gated(CAT, gate))
    assert decision.gamma == 0.0
    assert "inside another word" in decision.reason


def test_reasons_name_what_was_found():
    assert decide(CAT, "the Kittens")[0].reason == "name found: 'kitten'"
    assert decide(CAT, "the Kittens")[0].matched == ("kittens",)
    assert decide(CAT, "a cta")[0].reason == "misspelt name 'cat': 'cta'"
    assert decide(CAT, "a cat face")[0].reason == "inside a phrase to keep: 'cat'"
    assert decide(CAT, "")[0].reason == "empty prompt"


PIECES = st.lists(
    st.sampled_from(
        ["cat", "cats", "face", "dog", "tiger", "a", "Kitten", "hot", ",", "moggy", "tree", "CAT", "!", "xq"]
    ),
    max_size=10,
)


@settings(deadline=None)
@given(st.lists(PIECES.map(" ".join), min_size=1, max_size=5))
def test_binary_and_batch_equals_single_in_any_order(gate, synonyms, texts):
    batch = decide(CAT, *texts, gate=gate, encode=synonyms)
    backwards = decide(CAT, *texts[::-1], gate=gate, encode=synonyms)
    for text, decision, mirrored in zip(texts, batch, backwards[::-1], strict=True):
        assert decision.gamma in (0.0, 1.0)
        assert decision == mirrored == decide(CAT, text, gate=gate, encode=synonyms)[0]


@settings(deadline=None)
@given(PIECES)
def test_case_does_not_matter(gate, synonyms, pieces):
    text = " ".join(pieces)
    kinds = {gamma(CAT, form, gate=gate, encode=synonyms) for form in (text, text.upper(), text.lower(), text.title())}
    assert len(kinds) == 1


@settings(deadline=None)
@given(PIECES, st.sampled_from(["cat", "kitten", "KITTENS"]))
def test_a_name_set_apart_always_opens(pieces, name):
    assert gamma(CAT, f"{name} . " + " ".join(pieces)) == 1.0


def test_words_beyond_the_window_do_not_count():
    filler = "word " * 13
    assert gamma("cat", filler + "cat") == 1.0  # the fourteenth and last token of the window
    assert gamma("cat", filler + "word cat") == 0.0
    assert visible(encode_one(filler + "word cat")).split() == ["word"] * 14
    assert visible(encode_one("short cat")) == "short cat"


def test_names_without_words():
    tokens = EncodedPrompt("a 🐱", (1, 2), ("a</w>", "🐱</w>"), torch.zeros(16, DIM))
    assert Transport().decide([tokens], gated("🐱"))[0].gamma == 1.0
    assert gamma("猫", "一只猫在家") == 1.0
    assert gamma("猫", "一只狗在家") == 0.0


def test_a_gate_of_another_kind_or_width_is_refused(gate):
    with pytest.raises(CalibrationError, match="kind 'other'"):
        decide(CAT, "a dog", gate=GateState("other", {}))
    narrow = GateState("transport", gate.settings, {"weight": torch.zeros(3)})
    with pytest.raises(CalibrationError, match="width 3, this encoder gives 128"):
        decide(CAT, "a dog", gate=narrow)


def full(text, tokens, **more):
    """A prompt that fills its window with these tokens."""
    ids = tuple(id_of(token) for token in tokens)
    return EncodedPrompt(text, ids, tuple(tokens), torch.zeros(len(ids) + 1, DIM), first=0, room=len(ids), **more)


@pytest.mark.parametrize(
    "word",
    ["été", "собака", "cat", "e\u0301te\u0301", "고양이", "①", "İ"],
)
@pytest.mark.parametrize("mark", ["▁{}", "{}</w>", "Ġ{}"])
def test_a_full_window_of_any_script_is_read_to_its_end(word, mark):
    """SentencePiece writes characters into its tokens; byte-level vocabularies write bytes, one letter each."""
    letters = unicodedata.normalize("NFKC", word).lower()
    token = mark.format(letters if mark == "▁{}" else "x" * len(letters.encode()))
    words = [word] * 20
    assert visible(full(" ".join([*words, "beyond"]), [token] * 20)).split()[:20] == words
    assert "much" not in visible(full(" ".join([*words, *["further"] * 40, "much"]), [token] * 20))


def test_what_tokens_do_not_tell_is_read():
    text = "один два три a cat"
    assert visible(full(text, ["▁", "<unk>", "▁", "<unk>", "▁три", "▁a", "▁cat"])) == text
    assert visible(full(text, ["один", "два", "три", "a", "cat"])) == text
    spelt = ["▁", *(f"<0x{byte:02X}>" for byte in "猫".encode()), "▁a", "▁cat"]
    assert visible(full("猫 a cat and", spelt)) in ("猫 a cat", "猫 a cat and")
    assert visible(full("a b c", ["▁a"], seen="a b")) == "a b"


def test_a_name_that_is_found_as_text_is_looked_for_beside_another_in_a_phrase_to_keep():
    dog, cat = Concept("dog", aliases=("🐶",)), Concept("cat", aliases=("猫",), keep=("cat face",))
    assert gamma(dog, "a hot dog") == 0.0
    assert gamma(dog, "a hot dog and a 🐶") == 1.0
    assert gamma(cat, "a cat face, 黒猫の絵") == 1.0
    assert gamma(Concept("猫", keep=("猫 face",)), "a 猫 face") == 0.0


def test_of_a_rows_texts_the_one_that_opens_counts(gate):
    rows = [
        dataclasses.replace(encode_one("both"), parts=(encode_one(first), encode_one(second)))
        for first, second in (("a dog", "a cat"), ("a cat", "a dog"), ("a cat face", "a dog"))
    ]
    decisions = Transport().decide(rows, gated(CAT, gate))
    assert [decision.gamma for decision in decisions] == [1.0, 1.0, 0.0]
    assert decisions[0].reason == "name found: 'cat'"
