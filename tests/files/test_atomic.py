"""Files and folders are whole or not there, whatever stands in the way."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from lightning_tspike.files.atomic import replace_folder, whole_file


@pytest.mark.parametrize("foreseeable", [True, False])
def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, foreseeable: bool) -> None:
    file = tmp_path / "a.json"
    file.write_text("old")
    with pytest.raises(RuntimeError, match="stop"), whole_file(file, foreseeable=foreseeable) as stream:  # noqa: PT012
        stream.write(b"half")
        raise RuntimeError("stop")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("foreseeable", [True, False])
def test_a_link_in_its_place_is_replaced_and_not_followed(tmp_path: Path, foreseeable: bool) -> None:
    (tmp_path / "mine").write_text("mine")
    for name in (".a.json.partial", "a.json"):
        (tmp_path / name).symlink_to(tmp_path / "mine")
    with whole_file(tmp_path / "a.json", foreseeable=foreseeable) as stream:
        stream.write(b"new")
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / "a.json").is_symlink()
    assert (tmp_path / "a.json").read_text() == "new"


def test_a_folder_that_stands_in_the_way_of_the_foreseeable_name(tmp_path: Path) -> None:
    (tmp_path / ".a.json.partial").mkdir()
    with whole_file(tmp_path / "a.json", foreseeable=False) as stream:
        stream.write(b"new")
    assert (tmp_path / "a.json").read_text() == "new"


def test_several_writers_at_once(tmp_path: Path) -> None:
    """Each file is one writer's, whole; none fails because of another."""
    file, failures = tmp_path / "a", []

    def write(letter: bytes) -> None:
        try:
            for _ in range(20):
                with whole_file(file, foreseeable=False) as stream:
                    stream.write(letter * 1000)
        except OSError as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"x", b"y")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert file.read_bytes() in (b"x" * 1000, b"y" * 1000)
    assert os.listdir(tmp_path) == ["a"]


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["old", "old/new"]
