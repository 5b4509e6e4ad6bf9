"""The values that a rule reads are checked, and nothing beyond: bounds from both sides, and where it was."""

from typing import Any

import numpy as np
import pytest

from zigzag.reference.checks import values
from zigzag.reference.errors import ArgumentError

IDS = [[0, 1, 2], [2, 1, 0]]
ROW = [0.5, 0.25, 0.25]


def check(**changes: Any) -> None:
    given: dict[str, Any] = {
        "draft_token_ids": np.array(IDS),
        "draft_probs": np.array([[ROW] * 3] * 2),
        "target": np.array([[ROW] * 4] * 2),
        "uniforms": np.full((2, 4), 0.5),
        "num_draft_tokens": None,
        "are_probs": True,
    }
    values.check_draft_values("x", **{**given, **changes})


def table(rows: int, b: int, n: int, row: list[float], dtype: str = "float64") -> np.ndarray:
    made = np.array([[ROW] * rows] * 2, dtype=dtype)
    made[b, n] = row
    return made


def test_what_is_right_passes() -> None:
    check()
    check(draft_probs=None, uniforms=None, num_draft_tokens=np.array([0, 3]))
    check(uniforms=np.zeros((2, 4))), check(uniforms=np.full((2, 4), 1 - 1e-9))
    check(target=np.full((2, 4, 3), 7.0), are_probs=False)


@pytest.mark.parametrize(("dtype", "off"), [("float64", 1e-3), ("float32", 1e-3), ("float16", 2e-2)])
def test_rows_sum_to_one_within_their_precision(dtype: str, off: float) -> None:
    check(target=table(4, 1, 3, [0.5 + 0.9 * off, 0.25, 0.25], dtype))
    for sign in (1, -1):
        with pytest.raises(
            ArgumentError, match=r"^x: each row of target_probs must sum to 1, but row \[1, 3\] sums to"
        ):
            check(target=table(4, 1, 3, [0.5 + sign * 1.2 * off, 0.25, 0.25], dtype))


@pytest.mark.parametrize("row", [[-0.1, 0.6, 0.5], [np.nan, 0.5, 0.5], [np.inf, 0.0, 0.0]], ids=str)
def test_rows_that_are_no_probabilities(row: list[float]) -> None:
    with pytest.raises(ArgumentError, match=r"^x: target_probs must be finite and 0 or more, but row \[0, 2\] holds"):
        check(target=table(4, 0, 2, row))
    with pytest.raises(ArgumentError, match=r"^x: draft_probs must be finite and 0 or more, but row \[1, 0\] holds"):
        check(draft_probs=table(3, 1, 0, row))


def test_what_no_draft_reads_may_be_anything() -> None:
    counts = np.array([1, 3])
    nonsense = [np.nan, -1.0, 9.0]
    check(num_draft_tokens=counts, target=table(4, 0, 2, nonsense), draft_probs=table(3, 0, 1, nonsense))
    check(num_draft_tokens=counts, draft_token_ids=np.array([[0, 9, -9], IDS[1]]))
    check(num_draft_tokens=counts, uniforms=np.array([[0.5, 0.5, 9.0, 9.0], [0.5] * 4]))
    for changes in (
        {"target": table(4, 0, 1, nonsense)},
        {"draft_probs": table(3, 0, 0, nonsense)},
        {"draft_token_ids": np.array([[9, 0, 0], IDS[1]])},
        {"uniforms": np.array([[0.5, 9.0, 0.5, 0.5], [0.5] * 4])},
    ):
        with pytest.raises(ArgumentError):
            check(num_draft_tokens=counts, **changes)


def test_ids_counts_and_uniforms() -> None:
    values.check_ids("x", [[0, 2]], [2], 3), values.check_ids("x", [[0, 2]], [0], 3)
    for token in (3, -1):
        with pytest.raises(ArgumentError, match=rf"^x: draft ids must be in \[0, 3\), got {token} in row 1, draft 1;"):
            values.check_ids("x", [[0, 0], [0, token]], [2, 2], 3)
    for count in (3, -1):
        with pytest.raises(ArgumentError, match=rf"^x: num_draft_tokens\[1\] must be in \[0, 2\], got {count}"):
            values.check_ids("x", [[0, 0], [0, 0]], [2, count], 3)
    for u in (1.0, -1e-9, float("nan")):
        with pytest.raises(ArgumentError, match=rf"^x: uniforms must be in \[0, 1\), got {u} in row 1;"):
            values.check_uniforms("x", [[0.0, 0.5], [0.5, u]], [1, 1])


def test_a_draft_has_a_probability_where_it_was_drawn() -> None:
    with pytest.raises(ArgumentError, match=r"token 1 \(row 1, draft 1\) has probability 0"):
        check(draft_probs=table(3, 1, 1, [0.5, 0.0, 0.5]))
    siblings = {"parents": [-1, -1, -1], "draft_probs": table(3, 0, 1, [0.5, 0.0, 0.5])}
    with pytest.raises(ArgumentError, match=r"token 1 \(row 0, draft 1\) has probability 0"):
        check(**siblings)
    check(**siblings, replacement=False)  # once q is used up, later siblings come from the rest
    check(**siblings, one_source=True)  # of the first one's row
    with pytest.raises(ArgumentError, match=r"token 2 \(row 0, draft 2\) has probability 0"):
        check(parents=[-1, -1, 0], draft_probs=table(3, 0, 2, [0.5, 0.5, 0.0]), replacement=False)
    with pytest.raises(ArgumentError, match=r"draft_probs must be finite .* row \[0, 0\]"):
        check(parents=[-1, -1, -1], one_source=True, draft_probs=table(3, 0, 0, [np.nan, 0.5, 0.5]))


def test_siblings_of_one_source_without_probabilities_are_equal() -> None:
    equal = np.array([[1, 1, 2], [0, 0, 0]])
    check(draft_token_ids=equal, draft_probs=None, parents=[-1, -1, 0], one_source=True)
    check(draft_token_ids=np.array(IDS), draft_probs=None, parents=[-1, -1, 0])
    with pytest.raises(ArgumentError, match="siblings must be equal tokens"):
        check(draft_token_ids=np.array(IDS), draft_probs=None, parents=[-1, -1, 0], one_source=True)


def test_the_references_own_arrays() -> None:
    ids, q, rows, coins, counts = values.check_drafts("x", IDS, None, [[ROW] * 4] * 2, None, None)
    assert (ids.dtype, q, rows.dtype, coins.tolist(), counts) == (np.int64, None, np.float64, [[0.0] * 4] * 2, [3, 3])
    given = (np.float32([[ROW] * 3] * 2), np.float32([[ROW] * 4] * 2), np.full((2, 4), 0.25, np.float32), [1, 0])
    _, q, rows, coins, counts = values.check_drafts("x", IDS, *given)
    assert q is not None and (q.dtype, rows.dtype, coins.dtype) == (np.float64,) * 3 and counts == [1, 0]
    assert coins[0, 0] == 0.25
    empty, *_ = values.check_drafts("x", [[], []], None, [[ROW]] * 2, None, None)
    assert empty.dtype == np.int64 and empty.shape == (2, 0)
    with pytest.raises(ArgumentError, match=r"^x: draft ids must be in \[0, 3\)"):
        values.check_drafts("x", [[0, 1, 3], IDS[1]], None, [[ROW] * 4] * 2, None, None)
