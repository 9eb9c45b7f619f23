"""A failed write leaves the old file and nothing else, and says what to do."""

import errno
import os
import stat

import pytest
import torch
from safetensors.torch import save_file

from semipermeable.errors import OutputError
from semipermeable.files import atomic
from semipermeable.files.atomic import check_apart, write_atomically
from semipermeable.files.exporting.staging import new_file, new_folder


def raising(number):
    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return fail


class FullDisk:
    """A file whose third byte no longer fits."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.file.close()

    def write(self, data):
        self.file.write(data[:2])
        self.file.flush()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_it_writes_and_replaces(tmp_path):
    path = tmp_path / "f"
    for data in (b"old", b"newer"):
        write_atomically(path, data)
        assert path.read_bytes() == data
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path):
    write_atomically(tmp_path / "ours", b"")
    (tmp_path / "plain").touch()
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "plain")}
    assert len(modes) == 1


def test_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "f"
    path.write_bytes(b"old")
    fdopen = os.fdopen
    monkeypatch.setattr(atomic.os, "fdopen", lambda fd, mode: FullDisk(fdopen(fd, mode)))
    with pytest.raises(OutputError, match="No space left on device; free some space"):
        write_atomically(path, b"new")
    monkeypatch.undo()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"f": b"old"}


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_a_failed_rename_or_sync_keeps_the_old_file(tmp_path, monkeypatch, function):
    path = tmp_path / "f"
    path.write_bytes(b"old")
    monkeypatch.setattr(atomic.os, function, raising(errno.EIO))
    with pytest.raises(OutputError, match=r"cannot write .*f'.*choose another path") as caught:
        write_atomically(path, b"new")
    assert isinstance(caught.value.__cause__, OSError)
    monkeypatch.undo()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"f": b"old"}


def test_an_interrupt_leaves_no_file(tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "f", b"new")
    assert list(tmp_path.iterdir()) == []


def test_file_and_folder_are_synced_around_the_rename(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor):
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def noted_replace(source, target):
        events.append("rename")
        assert source.parent == target.parent
        replace(source, target)

    monkeypatch.setattr(atomic.os, "fsync", noted_fsync)
    monkeypatch.setattr(atomic.os, "replace", noted_replace)
    write_atomically(tmp_path / "f", b"new")
    assert events == ["file", "rename", "folder"]


@pytest.mark.parametrize(
    ("number", "step"),
    [
        (errno.EACCES, "choose a folder you may write to"),
        (errno.EROFS, "the disk is read-only"),
        (errno.EDQUOT, "your quota is used up"),
    ],
)
def test_the_next_step_fits_the_reason(tmp_path, monkeypatch, number, step):
    monkeypatch.setattr(atomic.os, "open", raising(number))
    with pytest.raises(OutputError, match=step):
        write_atomically(tmp_path / "f", b"new")


def test_wrong_places_are_refused(tmp_path):
    (tmp_path / "file").touch()
    for path, step in (
        (tmp_path / "missing" / "f", "create the folder first"),
        (tmp_path, "add a file name"),
        (".", "add a file name"),
        (tmp_path / "file" / "f", "a part of the path is a file"),
        (tmp_path / ("x" * 300), "choose a shorter name"),
        (tmp_path / "a\0b", "choose another path"),
    ):
        with pytest.raises(OutputError, match=step):
            write_atomically(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_target_is_kept_apart_from_what_is_read(tmp_path):
    (tmp_path / "in").touch()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for target in ("in", "link", "../" + tmp_path.name + "/in"):
        with pytest.raises(OutputError, match="is read for it and would be lost; choose another name"):
            check_apart(tmp_path / target, tmp_path / "missing", tmp_path / "in")
    check_apart(tmp_path / "out", tmp_path / "in", tmp_path / "missing")
    check_apart(tmp_path / ("x" * 300), tmp_path / "in", tmp_path / "a\0b")


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_baked_files_and_folders_have_the_permissions_of_any_new_file(tmp_path, umask):
    """safetensors, which writes them, makes its files for their owner alone."""
    before = os.umask(umask)
    try:
        with new_file(tmp_path / "m.safetensors") as path:
            save_file({"a": torch.zeros(2)}, path)
        with new_folder(tmp_path / "model") as stage:
            (stage / "unet").mkdir()
            save_file({"a": torch.zeros(2)}, stage / "unet" / "m.safetensors")
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~umask}
