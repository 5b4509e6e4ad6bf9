"""Bytes of a plan; `test_plans` and `test_head_plans` count them by hand for whole plans."""

import numpy as np
import pytest

from zigzag.plans.kv_size import kv_bytes
from zigzag.plans.window import Window
from zigzag.reference.errors import ArgumentError

FULL = np.array([[True, False], [False, False]])
WINDOWS = [Window(1, 2), Window(3, 4)]


def test_each_layer_has_its_own_window() -> None:
    slots = 100 + (1 + 2 + 5) + 2 * (3 + 4 + 5)
    assert kv_bytes(FULL, WINDOWS, 100, spare=5, batch=3, head_size=8, itemsize=4) == 2 * 3 * 8 * 4 * slots
    assert kv_bytes(FULL, WINDOWS, 100, head_size=1) == 2 * 2 * (100 + 67 + 2 * 71)  # 64 spare, a batch of 1, 2 bytes


@pytest.mark.parametrize("name", ["spare", "batch", "head_size", "itemsize"])
def test_a_negative_number_is_named(name: str) -> None:
    with pytest.raises(ArgumentError, match=f"^kv_bytes: {name} must be a whole number of at least 0, got -1$"):
        kv_bytes(FULL, WINDOWS, 0, **{"head_size": 0, "spare": 0, "batch": 0, "itemsize": 0, name: -1})
