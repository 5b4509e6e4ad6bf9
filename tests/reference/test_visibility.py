"""Trees with positions of their own; masks by hand are in `exact/test_reference`."""

import numpy as np
import pytest

from zigzag.reference.errors import ArgumentError
from zigzag.reference.visibility import default_positions, positions_of, visible


def test_a_query_that_is_no_node_sees_no_node() -> None:
    """Whatever its position: of three queries the last two are the nodes."""
    seen = visible(np.array([9, 3, 4]), np.array([0, 1, 3, 4]), parents=[-1, 0])
    assert seen.astype(int).tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


def test_nodes_see_their_ancestors_alone() -> None:
    seen = visible(*default_positions(4, 6, [-1, -1, 0, 2]), parents=[-1, -1, 0, 2])
    assert seen[:, 2:].astype(int).tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]
    assert seen[:, :2].all()


def test_default_positions() -> None:
    queries, keys = default_positions(2, 5)
    assert (queries.tolist(), keys.tolist()) == ([3, 4], [0, 1, 2, 3, 4])
    queries, keys = default_positions(4, 6, [-1, -1, 0, 2])
    assert (queries.tolist(), keys.tolist()) == ([2, 2, 3, 4], [0, 1, 2, 2, 3, 4])
    given = np.array([7, 8]), np.array([1, 2, 3])
    assert [x.tolist() for x in positions_of(2, 3, None, None)] == [[1, 2], [0, 1, 2]]
    assert [x.tolist() for x in positions_of(2, 3, given[0], None)] == [[7, 8], [0, 1, 2]]
    assert [x.tolist() for x in positions_of(2, 3, *given)] == [[7, 8], [1, 2, 3]]
    assert positions_of(5, 3, np.arange(5), None)[1].tolist() == [0, 1, 2]


def test_what_does_not_fit() -> None:
    with pytest.raises(ArgumentError, match=r"^visible: both positions must have the same B, got 2 and 3"):
        visible(np.zeros((2, 1), int), np.zeros((3, 1), int))
    assert visible(np.zeros((2, 1), int), np.zeros((2, 4), int)).shape == (2, 1, 4)
    assert (
        visible(np.zeros((2, 1), int), np.zeros(4, int)).shape == visible(np.zeros(1, int), np.zeros((2, 4), int)).shape
    )
    with pytest.raises(ArgumentError, match=r"^visible: query_positions must have shape \[0\] or \[B, 0\], got \[\]"):
        visible(np.array(3), np.arange(3))
    with pytest.raises(ArgumentError, match=r"^visible: key_positions must have shape \[0\] or \[B, 0\], got \[\]"):
        visible(np.arange(3), np.array(3))
    with pytest.raises(ArgumentError, match=r"^visible: the 4 tree nodes must be the last keys"):
        visible(np.arange(3), np.arange(3), parents=[-1] * 4)
