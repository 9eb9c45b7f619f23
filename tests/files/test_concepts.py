"""Concepts as TOML: exact round trips, and errors that name file and table."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import semipermeable as spm
from semipermeable.concept import Concept
from semipermeable.errors import ConceptError, OutputError

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).map(lambda t: "x" + " ".join(t.split()))
some = st.lists(texts, max_size=3)


@st.composite
def concepts(draw):
    """Prefixes keep a phrase from being both erased and kept."""
    aliases = tuple("a " + text for text in draw(some))
    keep = tuple("k " + text for text in draw(some))
    return Concept("n " + draw(texts), aliases, draw(st.sampled_from(["", "s " + draw(texts)])), keep)


@settings(max_examples=80, deadline=None)
@given(st.lists(concepts(), min_size=1, max_size=4, unique_by=lambda c: c.name.casefold()))
def test_concepts_come_back_equal(tmp_path_factory, several):
    path = tmp_path_factory.mktemp("any") / "c.toml"
    spm.save_concepts(several, path)
    assert spm.load_concepts(path) == tuple(several)
    before = path.read_bytes()
    spm.save_concepts(spm.load_concepts(path), path)
    assert path.read_bytes() == before


def test_a_written_file_reads_as_documented(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(
        '[[concept]]\nname = "cat"\nkeep = ["cat  face"]\n\n[[concept]]\nname = "Van Gogh"\nsurrogate = "art"\n'
    )
    assert spm.load_concepts(path) == (Concept("cat", keep=("cat face",)), Concept("Van Gogh", surrogate="art"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no concept; write one"),
        ("concept = []", "holds no concept; write one"),
        ('[concept]\nname = "cat"', r"holds a single \[concept\]; write one \[\[concept\]\] table"),
        ("concept = [3]", r"concept 1: must be a \[\[concept\]\] table, found 3"),
        ('[[concepts]]\nname = "cat"', r"unknown key 'concepts'; did you mean 'concept'\?"),
        ('[[concept]]\nname = "cat"\n[[concept]]\nsurogate = "x"', r"concept 2: unknown key 'surogate'.*'surrogate'\?"),
        ('[[concept]]\naliases = ["x"]', r"concept 1: has no name; add e.g. name = "),
        ('[[concept]]\nname = "cat"\naliases = "kitty"', r"concept 1: concept field 'aliases' must be a list"),
        ("[[concept]]\nname = 3", r"concept 1: concept field 'name' must be text, found int"),
        ('[[concept]]\nname = "cat"\n[[concept]]\nname = "Cat"', r"concept 2 has the name 'Cat' of concept 1; join"),
        ("[[concept]\n", "is not valid TOML: .*line 1"),
    ],
)
def test_errors_name_the_file_and_the_table(tmp_path, text, message):
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(ConceptError, match=message) as caught:
        spm.load_concepts(path)
    assert str(caught.value).startswith(str(path))


def test_files_that_cannot_be_read_are_errors(tmp_path):
    with pytest.raises(ConceptError, match=r"cannot be read: No such file.*check the path"):
        spm.load_concepts(tmp_path / "missing.toml")
    (tmp_path / "latin.toml").write_bytes(b'[[concept]]\nname = "caf\xe9"\n')
    with pytest.raises(ConceptError, match=r"is not valid TOML"):
        spm.load_concepts(tmp_path / "latin.toml")


def test_what_could_not_be_read_back_is_not_written(tmp_path):
    path = tmp_path / "c.toml"
    for several, message in (
        ([], "there is no concept to write"),
        ([Concept("cat"), Concept("CAT")], "concept 2 has the name 'CAT' of concept 1"),
    ):
        with pytest.raises(ConceptError, match=message):
            spm.save_concepts(several, path)
    with pytest.raises(OutputError, match="create the folder first"):
        spm.save_concepts([Concept("cat")], tmp_path / "missing" / "c.toml")
    assert list(tmp_path.iterdir()) == []
