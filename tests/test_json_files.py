"""JSON that cannot be read: each room raises its own error, and the message says what is wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import zigzag
from zigzag import ArgumentError, HeadPlan, HeadScores, LayerPlan, ModelError, PlanError
from zigzag.files.json_files import read_json
from zigzag.models.checkpoint import open_checkpoint, read_config
from zigzag.models.load import glm_folder
from zigzag.plans.formats import load_duo_attention
from zigzag.sizes.shape import model_shape

CONTENTS = {
    "cut off": (b"{", "a JSON file is needed, got JSONDecodeError"),
    "empty": (b"", "a JSON file is needed, got JSONDecodeError"),
    "a list": (b"[1]", "a JSON object is needed, got list"),
    "not UTF-8": (b'{"model_type": "\xe9"}', "a JSON file is needed, got UnicodeDecodeError"),
    "brackets without end": (b"[" * 100_000, "a JSON file is needed, got RecursionError"),
    "a folder": (None, "there is no file|holds no config.json|a file is needed"),
}
READERS: dict[str, tuple[Callable[[Path], Any], type[Exception]]] = {
    "plan": (LayerPlan.load, PlanError),
    "head plan": (HeadPlan.load, PlanError),
    "scores": (HeadScores.load, PlanError),
    "DuoAttention": (lambda file: load_duo_attention(file.parent), PlanError),
    "config.json": (read_config, ModelError),
    "folder of a model": (lambda file: glm_folder(str(file.parent)), ModelError),
    "sizes": (model_shape, ModelError),
    "sizes of a folder": (lambda file: model_shape(file.parent), ModelError),
    "checkpoint": (lambda file: open_checkpoint(file.parent), ModelError),
    "load": (lambda file: zigzag.load(file.parent), ModelError),
    "load_model": (lambda file: zigzag.load_model(file.parent), ModelError),
    "another": (lambda file: read_json(file, ArgumentError), ArgumentError),
}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", READERS)
def test_each_reader_raises_its_own_error(name: str, content: str, tmp_path: Path) -> None:
    read, error = READERS[name]
    (tmp_path / "full_attention_heads.tsv").write_text("1\n")
    file = tmp_path / "config.json"
    damaged, message = CONTENTS[content]
    if damaged is None:
        file.mkdir()
    else:
        file.write_bytes(damaged)
    if name == "folder of a model" and damaged is None:
        assert read(file) is None  # it says whether there is a checkpoint with an MTP layer; load_model asks the rest
        return
    with pytest.raises(error, match=message) as raised:
        read(file)
    assert raised.type is error


def test_the_format_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"format": "other", "version": 1}')
    with pytest.raises(ModelError, match="format 'wanted' version 1 is needed, got 'other' version 1"):
        read_json(tmp_path / "x.json", ModelError, "wanted")
    assert read_json(tmp_path / "x.json", ModelError, "other")["version"] == 1
