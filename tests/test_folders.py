"""Folders that are replaced once the new one is whole."""

from pathlib import Path

import pytest

from zigzag.files.folders import replaced


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "old").write_text("old")
    (tmp_path / ".made.new").mkdir()  # of a run that was killed
    (tmp_path / ".made.new" / "half").write_text("half")
    with replaced(tmp_path / "made") as new:
        assert not new.exists() and names(tmp_path / "made") == ["old"]
        new.mkdir()
        (new / "one").write_text("new")
    assert names(tmp_path) == ["made", "made/one"]


def test_what_fails_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "old").write_text("old")
    with pytest.raises(RuntimeError), replaced(tmp_path / "made") as new:
        new.mkdir()
        raise RuntimeError
    assert names(tmp_path) == ["made", "made/old"]


def test_where_there_was_none(tmp_path: Path) -> None:
    with replaced(tmp_path / "made") as new:
        new.mkdir()
    assert names(tmp_path) == ["made"]
