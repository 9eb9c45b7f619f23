"""Public prompt files: read as published; what is wrong is named by file and row."""

from pathlib import Path

import pytest

from semipermeable.errors import ConfigError
from semipermeable.evaluation.benchmarks.prompt_files import read_prompts

DATA = Path(__file__).parents[2] / "data" / "prompts"


def written(folder, text, encoding="utf-8"):
    path = folder / "prompts.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_quotes_seeds_and_columns():
    rows = read_prompts([DATA / "coco.csv"])
    assert [row.seed for row in rows] == [41337, 63155, 78978, 5]
    assert rows[1].prompt == "Two cups, one of them empty, on a table."
    assert rows[1].fields["width"] == "640"
    assert read_prompts([DATA / "i2p.csv"])[0].seed == 2996054043


def test_several_files_follow_each_other_up_to_the_limit():
    rows = read_prompts([DATA / "coco.csv", DATA / "i2p.csv"], limit=5)
    assert len(rows) == 5
    assert rows[-1].prompt.startswith("a statue")


def test_a_byte_order_mark_and_no_seed(tmp_path):
    (row,) = read_prompts([written(tmp_path, "prompt\na dog\n", "utf-8-sig")])
    assert (row.prompt, row.seed) == ("a dog", None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("text\na\n", r"prompts\.csv' has no column 'prompt'; its header is \['text'\]"),
        ("prompt\n", "holds no row below its header"),
        ("", "has no column 'prompt'"),
        ("prompt,evaluation_seed\na,1\nb,x\n", r"row 3: column 'evaluation_seed' holds 'x'; expected a whole number"),
        ("prompt,evaluation_seed\na,-1\n", r"row 2: column 'evaluation_seed' holds -1; expected a number from 0"),
        ("prompt,class\na,b\n  ,b\n", "row 3: column 'prompt' is empty"),
        ("prompt,class\na,b\nb,\n", "row 3: column 'class' is empty"),
        ("prompt,class\na,b,c\n", "row 2: it has another number of fields than the header; quote"),
        ("prompt,class\na\n", "row 2: it has another number of fields"),
        ('prompt,class\na,b\n"a"x,b\n', "row 3: no CSV"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words):
        read_prompts([written(tmp_path, text)], ("class",) if "class" in text else ())


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"'.*nowhere\.csv' cannot be read"):
        read_prompts([tmp_path / "nowhere.csv"])
    path = tmp_path / "latin.csv"
    path.write_bytes("prompt\ncafé\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="expected CSV in UTF-8"):
        read_prompts([path])
