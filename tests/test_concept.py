import pytest
from hypothesis import given
from hypothesis import strategies as st

from semipermeable.concept import Concept
from semipermeable.errors import ConceptError


def test_white_space_is_normalised_and_repeated_aliases_are_dropped():
    concept = Concept("  Van \n Gogh ", aliases=("van gogh", "Vincent", "Vincent "), keep=("gogh street",))
    assert concept.name == "Van Gogh"
    assert concept.aliases == ("Vincent",)
    assert concept.names == ("Van Gogh", "Vincent")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": ""}, "needs a name"),
        ({"name": "cat \udcff"}, r"'name' is not valid Unicode text: 'cat \\udcff'; write it in UTF-8"),
        ({"name": "cat", "keep": ("\ud800",)}, "'keep' is not valid Unicode"),
        ({"name": 3}, "must be text, found int"),
        ({"name": "cat", "aliases": "kitty"}, r"must be a list of texts.*write \['kitty'\]"),
        ({"name": "cat", "aliases": ("",)}, "holds an empty text"),
        ({"name": "cat", "keep": ("Cat",)}, "to be erased and to be kept"),
        ({"name": "cat", "aliases": ("kitty",), "surrogate": "Kitty"}, "is the concept itself"),
    ],
)
def test_bad_fields_are_refused_with_the_fix(arguments, message):
    with pytest.raises(ConceptError, match=message):
        Concept(**arguments)


@given(st.text(min_size=1).filter(lambda s: s.strip()))
def test_equal_concepts_hash_alike(name):
    assert hash(Concept(name)) == hash(Concept(f" {name} "))
