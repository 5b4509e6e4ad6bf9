"""What a streaming cache holds: edges by hand. Long histories are in `test_streaming_cache` and `exact/`."""

import pytest

from zigzag.reference.cache import append, rollback
from zigzag.reference.errors import ArgumentError, CacheError

WINDOW = {"sink": 2, "recent": 3}


def test_appending() -> None:
    assert append((), 0, 5, **WINDOW) == (0, 1, 2, 3, 4) and append((), 0, 6, **WINDOW) == (0, 1, 3, 4, 5)
    assert append((), 0, 6, **WINDOW, spare=1) == (0, 1, 2, 3, 4, 5)
    assert append((0, 1, 5, 6, 7), 8, 2, **WINDOW, spare=1) == (0, 1, 6, 7, 8, 9)
    assert append((0, 1), 2, 0, **WINDOW) == (0, 1)
    assert append((), 0, 4, sink=0, recent=1) == (3,) and append((), 0, 4, sink=1, recent=0) == (0,)


def test_taking_back() -> None:
    held = (0, 1, 4, 5, 6, 7)
    assert rollback(held, 8, 0, **WINDOW, spare=1) == held and rollback(held, 8, 1, **WINDOW, spare=1) == held[:-1]
    with pytest.raises(CacheError, match=r"at most spare = 1 tokens .* window of 3 has moved on, got 2"):
        rollback(held, 8, 2, **WINDOW, spare=1)
    with pytest.raises(CacheError, match="at most spare = 0"):
        rollback((0, 1, 5, 6, 7), 8, 1, **WINDOW)
    with pytest.raises(CacheError):  # spare allows two, but 4 is not held any more
        rollback((0, 1, 5, 6, 7), 8, 2, **WINDOW, spare=2)
    assert rollback((0, 1, 5, 6, 7), 8, 1, **WINDOW, spare=2) == (0, 1, 5, 6)
    assert rollback((0, 1, 2, 3), 4, 4, **WINDOW) == () and rollback((0, 1, 2, 3), 4, 3, **WINDOW) == (0,)
    with pytest.raises(ArgumentError, match="at most the 4 tokens seen can be taken back, got 5"):
        rollback((0, 1, 2, 3), 4, 5, **WINDOW)
    with pytest.raises(CacheError):  # a sink that is not held any more
        rollback((1, 2, 3), 4, 1, **WINDOW, spare=1)


@pytest.mark.parametrize("function", [append, rollback])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seen": -1, "held": ()}, "seen must not be negative, got -1"),
        ({"count": -1}, "count must not be negative, got -1"),
        ({"spare": -1}, "spare must not be negative, got -1"),
        ({"sink": -1}, "sink must not be negative, got -1"),
        ({"sink": 0, "recent": 0}, r"sink \+ recent must be at least 1"),
        ({"held": (1, 0)}, r"held must be ascending positions in \[0, 3\), got \(1, 0\)"),
        ({"held": (0, 0)}, r"held must be ascending positions in \[0, 3\), got \(0, 0\)"),
        ({"held": (0, 3)}, r"held must be ascending positions in \[0, 3\), got \(0, 3\)"),
        ({"held": (-1, 0)}, r"held must be ascending positions in \[0, 3\), got \(-1, 0\)"),
    ],
)
def test_what_cannot_be(function, changes: dict, words: str) -> None:
    given = {"held": (0, 1, 2), "seen": 3, "count": 1, "sink": 2, "recent": 3, **changes}
    with pytest.raises(ArgumentError, match=f"^{function.__name__}: {words}"):
        function(**given)
