"""Options that are plain numbers: each bound from both sides, and the name of what is wrong."""

from typing import Any

import pytest

from zigzag.reference.checks import options
from zigzag.reference.errors import ArgumentError, KindError, ZigzagError


def test_windows() -> None:
    assert options.check_window("x", None, None, 1) is None
    assert options.check_window("x", 4, None, 1) == (4, 0) and options.check_window("x", None, 4, 1) == (0, 4)
    assert options.check_window("x", 8, 16, 8) == options.check_streaming_window("x", 8, 16, 8) == (8, 16)
    assert options.check_window("x", 0, 1, 1) == (0, 1) and options.check_window("x", 1, 0, 1) == (1, 0)
    with pytest.raises(ArgumentError, match=r"^x: sink and recent are needed, got None for both"):
        options.check_streaming_window("x", None, None, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("window", "error", "words"),
    [
        ((None, None, 0), ArgumentError, "align must be an integer of at least 1, got 0"),
        ((None, None, True), ArgumentError, "align must be an integer of at least 1, got True"),
        ((None, None, 1.0), ArgumentError, r"align must be an integer of at least 1, got 1\.0"),
        ((1.0, 1, 1), KindError, r"sink must be an integer number of tokens, got 1\.0"),
        ((1, True, 1), KindError, "recent must be an integer number of tokens, got True"),
        ((-1, 1, 1), ArgumentError, "sink must not be negative, got -1"),
        ((1, -1, 1), ArgumentError, "recent must not be negative, got -1"),
        ((4, 6, 4), ArgumentError, "recent must be a multiple of align=4, got 6"),
        ((6, 4, 4), ArgumentError, "sink must be a multiple of align=4, got 6"),
        ((0, 0, 1), ArgumentError, r"sink \+ recent must be at least 1, got 0 \+ 0"),
        ((0, None, 1), ArgumentError, r"sink \+ recent must be at least 1"),
    ],
)
def test_windows_that_cannot_be(window: tuple[Any, Any, Any], error: type[ZigzagError], words: str) -> None:
    for check in (options.check_window, options.check_streaming_window):
        if window[:2] != (None, None) or check is options.check_window:
            with pytest.raises(error, match=f"^x: {words}"):
                check("x", *window)


def test_counts() -> None:
    options.check_count("x", "n", 1)
    for wrong in (0, -1, True, 1.0, None):
        with pytest.raises(ArgumentError, match=r"^x: n must be a whole number of at least 1, got"):
            options.check_count("x", "n", wrong)  # type: ignore[arg-type]


SAMPLING = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


@pytest.mark.parametrize(
    ("name", "right", "wrong", "words"),
    [
        ("temperature", (0, 1e-3, 100.0), (-1e-3, float("inf"), float("nan")), "a finite number, 0 or more"),
        ("top_k", (0, 1, 10**6), (-1, True, False, 1.0), r"a whole number, 0 \(keep all\) or more"),
        ("top_p", (1e-9, 0.5, 1.0), (0.0, -0.1, 1.001, float("nan")), r"in \(0, 1\]"),
        ("min_p", (0.0, 0.5, 1.0), (-0.001, 1.001, float("nan")), r"in \[0, 1\]"),
    ],
)
def test_sampling(name: str, right: tuple[Any, ...], wrong: tuple[Any, ...], words: str) -> None:
    for value in right:
        options.check_sampling("x", **{**SAMPLING, name: value})
    for value in wrong:
        with pytest.raises(ArgumentError, match=f"^x: {name} must be {words}, got {value}$"):
            options.check_sampling("x", **{**SAMPLING, name: value})


@pytest.mark.parametrize(
    ("name", "right", "wrong", "words"),
    [
        ("epsilon", (0, 0.5, 9.0), (-1e-3, float("nan")), "0 or more"),
        ("delta", (0, 0.5, 9.0), (-1e-3, float("nan")), "0 or more"),
        ("top_n", (1, 5), (0, True, 1.0), "a whole number of at least 1"),
        ("k", (1, 5), (0, True, 1.0), "a whole number of at least 1"),
        ("lenience", (0, 0.5, 1), (-1e-3, 1.001, float("nan")), r"in \[0, 1\]"),
        ("temperature", (None, 0, 1.0), (-1e-3, float("inf")), "a finite number, 0 or more"),
    ],
)
def test_rule_options(name: str, right: tuple[Any, ...], wrong: tuple[Any, ...], words: str) -> None:
    options.check_rule_options("x")
    for value in right:
        options.check_rule_options("x", **{name: value})
    for value in wrong:
        with pytest.raises(ArgumentError, match=f"^x: {name} must be {words}, got {value}$"):
            options.check_rule_options("x", **{name: value})
