"""A file is replaced whole or not at all."""

import os
import subprocess
import sys

import pytest

from lltoolkit.files import leftovers, write_atomically


def test_the_new_file_replaces_the_old_one(tmp_path):
    path = tmp_path / "result.nc"
    path.write_text("old")
    write_atomically(path, lambda temporary: temporary.write_text("new"))
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("fault", [OSError("disk full"), KeyboardInterrupt()])
def test_a_writer_that_fails_leaves_the_old_file_and_no_other(fault, tmp_path):
    path = tmp_path / "result.nc"
    path.write_text("old")

    def write(temporary):
        temporary.write_text("half of")
        raise fault

    with pytest.raises(type(fault)):
        write_atomically(path, write)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_while_it_is_written_readers_find_the_old_file(tmp_path):
    path = tmp_path / "result.nc"
    path.write_text("old")
    seen = []

    def write(temporary):
        temporary.write_text("new")
        seen.append((path.read_text(), temporary.suffix, temporary.name.startswith(".")))

    write_atomically(path, write)
    assert seen == [("old", ".nc", True)]


def test_the_data_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append("fsync"))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    write_atomically(tmp_path / "a.nc", lambda temporary: temporary.write_text("x"))
    assert calls == ["fsync", "replace", "fsync"]


def test_a_missing_folder_is_the_error_that_shows(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "none" / "a.nc", lambda temporary: temporary.write_text("x"))


def test_what_a_killed_writer_left_is_found_by_its_name_alone(tmp_path):
    path = tmp_path / "a[1].nc"
    code = f"""
import os, signal
from pathlib import Path
from lltoolkit.files import leftovers, write_atomically
def write(temporary):
    temporary.write_text("half of")
    os.kill(os.getpid(), signal.SIGKILL)
write_atomically(Path({str(path)!r}), write)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    (tmp_path / ".b.1.part.nc").touch()
    (left,) = leftovers(path)
    assert left.read_text() == "half of"
