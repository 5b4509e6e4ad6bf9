"""What `ragged_attention` refuses in the reference, which looks at values; its meaning is that of `attention`."""

from typing import Any

import numpy as np
import pytest

from zigzag import ops, reference
from zigzag.reference.errors import ArgumentError, KindError

QUERY, KEY = np.ones((3, 4, 2)), np.ones((5, 2, 3, 2))
ROWS = {
    "query_starts": np.array([0, 1, 3]),
    "lengths": np.array([4, 2]),
    "block_table": np.array([[0, 1], [2, 3]]),
}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"query_starts": np.array([0, 1, 2])}, r"query_starts must ascend from 0 to N = 3, got \[0, 1, 2\]"),
    ({"query_starts": np.array([1, 1, 3])}, "query_starts must ascend from 0"),
    ({"query_starts": np.array([0, 4, 3])}, "query_starts must ascend from 0"),
    ({"query_starts": np.array([0, 3])}, "query_starts must have shape"),
    ({"lengths": np.array([4, 1])}, r"lengths must be from a row's new tokens, \[1, 2\], to M \* page_size = 6"),
    ({"lengths": np.array([7, 2])}, "lengths must be from a row's new tokens"),
    ({"lengths": np.array([4, 2, 1])}, "lengths must have shape"),
    ({"block_table": np.zeros((2, 0), dtype=int)}, "at least one row, token and page, got M = 0"),
    ({"block_table": np.array([[0, 1]])}, "lengths must have shape"),
    ({"max_queries": 1}, "more than max_queries = 1 tokens, got 2"),
    ({"sink": 0, "recent": 0}, r"sink \+ recent must be at least 1"),
]


@pytest.mark.parametrize(("given", "told"), WRONG)
def test_what_is_refused(given: dict[str, Any], told: str) -> None:
    reference.ragged_attention(QUERY, KEY, KEY, **ROWS)
    with pytest.raises(ArgumentError, match=f"^ragged_attention: .*{told}"):
        reference.ragged_attention(QUERY, KEY, KEY, **{**ROWS, **given})


@pytest.mark.parametrize("name", ROWS)
def test_whole_numbers_are_wanted(name: str) -> None:
    with pytest.raises(KindError, match=f"{name} must be integers"):
        ops.ragged_attention(QUERY, KEY, KEY, **{**ROWS, name: ROWS[name].astype(float)})


def test_shapes_are_wanted() -> None:
    with pytest.raises(ArgumentError, match="H query heads must be a multiple of G KV heads, got 3 and 2"):
        ops.ragged_attention(QUERY[:, :3], KEY, KEY, **ROWS)
    with pytest.raises(ArgumentError, match="value must have shape"):
        ops.ragged_attention(QUERY, KEY, KEY[:4], **ROWS)
    with pytest.raises(ArgumentError, match="max_queries must be a whole number of at least 1, got 0"):
        ops.ragged_attention(QUERY, KEY, KEY, **ROWS, max_queries=0)


def test_a_page_that_a_token_sees_must_be_one() -> None:
    """What is none stands for NaN: nothing is made up for it."""
    table = np.array([[0, 9], [2, 3]])
    output, _ = reference.ragged_attention(QUERY, KEY, KEY, **{**ROWS, "block_table": table})
    assert np.isnan(output[0]).all() and not np.isnan(output[1:]).any()
