"""No name leads out of the work folder."""

import pytest

from semipermeable.errors import OutputError, StudioError
from semipermeable.studio.workfolder import WorkFolder, stem_of


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "/etc/passwd", ".hidden", "a\\b", "a\nb", "a\0b", "link", "link/x"]
)
def test_a_name_that_leads_elsewhere_is_refused(work, tmp_path, name):
    (work.corner("models") / "link").symlink_to(tmp_path)
    with pytest.raises(StudioError, match="not a plain file name of the studio's folder 'models'"):
        work.place("models", name)


def test_a_plain_name_is_inside(work):
    assert work.place("models", "my model.safetensors").parent == work.corner("models")


def test_stems_are_plain_and_tell_names_apart(work):
    names = ["cat", "Cat", "c a t", "c-a-t", "Van Gogh", "猫", "../cat", "x" * 200, "x" * 201, "…"]
    stems = [stem_of(name) for name in names]
    assert len(set(stems)) == len(names)
    assert stems[0] == "cat"
    for stem in stems:
        work.place("membranes", f"{stem}.safetensors")


def test_a_damaged_file_of_ours_reads_as_empty(work):
    path = work.root / "desk.json"
    for content in (b"{", b"[1]", b"\xff"):
        path.write_bytes(content)
        assert work.read(path) == {}
    work.write(path, {"a": "γ"})
    assert work.read(path) == {"a": "γ"}


def test_a_place_that_cannot_be_written_is_said_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="a part of the path is a file"):
        WorkFolder(tmp_path / "file" / "work")
