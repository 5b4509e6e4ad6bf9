"""Head scores: what they hold, and their file."""

import json
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zigzag.plans.scores import HeadScores
from zigzag.reference.errors import PlanError

SCORES = HeadScores([[1, 2, 3], [4, 5, 6]], "lost_mass", 4, 16, model="tiny", details={"lengths": [8]})
CONTENT = {
    "format": "zigzag-head-scores",
    "version": 1,
    "method": "lost_mass",
    "sink": 4,
    "recent": 16,
    "model": "tiny",
    "details": {"lengths": [8]},
    "values": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]],
}


def test_the_file_is_this_one(tmp_path: Path) -> None:
    """Files of one version are read by the next: a round trip would not notice a name that changed."""
    SCORES.save(tmp_path / "scores.json")
    assert json.loads((tmp_path / "scores.json").read_text()) == CONTENT
    (tmp_path / "other.json").write_text(json.dumps(CONTENT))
    assert HeadScores.load(tmp_path / "other.json") == SCORES


def test_equal_is_what_has_the_same_content() -> None:
    def changed(**changes: Any) -> HeadScores:
        return HeadScores.from_content({**SCORES.content(), **changes}, "x")

    assert changed() == SCORES and hash(changed()) == hash(SCORES)
    for changes in (
        {"method": "x"},
        {"sink": 1},
        {"model": None},
        {"details": {}},
        {"values": [[1.0, 2, 3], [4, 5, 7]]},
    ):
        assert changed(**changes) != SCORES
    assert SCORES.content() != SCORES and SCORES != "lost_mass"


def test_nothing_of_it_changes() -> None:
    values = np.ones((2, 3))
    scores = HeadScores(values, "x", 1, 1)
    values[0, 0] = 9
    assert scores.values.dtype == np.float64 and scores.values[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        scores.values[0, 0] = 9
    with pytest.raises(FrozenInstanceError):
        scores.sink = 2  # type: ignore[misc]
    assert (scores.num_layers, scores.num_kv_heads, scores.model, scores.details) == (2, 3, None, {})


@pytest.mark.parametrize("values", [np.ones(3), np.ones((1, 1, 1)), np.ones((0, 2)), np.ones((2, 0))])
def test_other_shapes(values: np.ndarray) -> None:
    shape = ", ".join(map(str, values.shape))
    with pytest.raises(PlanError, match=rf"must have shape \[L, G\] with L, G >= 1, got \[{shape}\]"):
        HeadScores(values, "x", 1, 1)


def test_values_that_are_not_finite_are_counted() -> None:
    with pytest.raises(PlanError, match="got 2 that are not"):
        HeadScores([[np.nan, 1.0, np.inf]], "x", 1, 1)


@pytest.mark.parametrize("rows", [[[1.0], [1.0, 2.0]], [["a"]], [[{}]]])
def test_damaged_values(rows: list[Any]) -> None:
    with pytest.raises(PlanError, match=r"^file: 'values' must be equally long rows of numbers"):
        HeadScores.from_content({**CONTENT, "values": rows}, "file")


@pytest.mark.parametrize("key", ["values", "method", "sink", "recent", "model", "details"])
def test_what_is_missing_is_named(key: str) -> None:
    with pytest.raises(PlanError, match=f"^file: '{key}' must be a .*, got nothing"):
        HeadScores.from_content({name: value for name, value in CONTENT.items() if name != key}, "file")
    with pytest.raises(PlanError, match=f"^file: '{key}' must be a .*, got True"):
        HeadScores.from_content({**CONTENT, key: True}, "file")
