"""Checks that are remembered: made once for what they were given, and not for anything that only looks like it."""

import threading

import numpy as np
import pytest

import zigzag
from zigzag import ops
from zigzag.reference import checks
from zigzag.reference.checks import remembered as module
from zigzag.reference.checks import shapes
from zigzag.reference.checks.remembered import form, formed, remembered
from zigzag.reference.errors import ArgumentError, KindError

X = np.zeros((1, 2, 3, 4))


def counted() -> tuple:
    """(a remembered check of two arguments, what it was asked)"""
    asked: list[tuple] = []

    @remembered
    def check(one: object, two: object = None) -> tuple:
        asked.append((one, two))
        if one == "wrong":
            raise KindError("wrong")
        return one, two

    return check, asked


def test_made_once_for_equal_arguments_of_equal_types() -> None:
    check, asked = counted()
    for _ in range(2):
        for one in (1, 1.0, True, np.int64(1), (1, 2), "a", None):
            assert check(one) == (one, None) and type(check(one)[0]) is type(one)
    assert len(asked) == 7
    assert check(1, two=2) == (1, 2) == check(1, two=2)
    assert len(asked) == 8


def test_errors_and_what_has_no_hash_are_not_remembered() -> None:
    check, asked = counted()
    for _ in range(2):
        with pytest.raises(KindError, match="wrong") as caught:
            check("wrong")
        assert caught.value.__context__ is None
        assert check([1]) == ([1], None)
    assert asked.count(([1], None)) == 2 and asked.count(("wrong", None)) >= 2


def test_answers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 2)
    check, asked = counted()
    for number in (1, 2, 3, 1):
        check(number)
    assert len(asked) == 4


def test_threads_may_ask_at_once() -> None:
    check, asked = counted()
    found: list[tuple] = []
    threads = [threading.Thread(target=lambda: found.append(check(1, 2))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [(1, 2)] * 4 and 1 <= len(asked) <= 4


def test_a_form_is_checked_as_its_array() -> None:
    assert form(None) is None and formed(None) == [None]
    assert form(X) == ((1, 2, 3, 4), np.dtype("float64")) == (formed(form(X))[0].shape, formed(form(X))[0].dtype)
    for array in (X, X.astype(np.int32), X[0]):
        outcomes = []
        for given in (array, *formed(form(array))):
            try:
                shapes.check_shape("op", "x", given, "B H T D", {})
                shapes.check_floating("op", x=given)
                outcomes.append("")
            except zigzag.ZigzagError as error:
                outcomes.append(str(error))
        assert outcomes[0] == outcomes[1]


def attend(*arrays: np.ndarray, **options: object) -> object:
    return ops.attention(*(arrays or (X, X, X)), **options)  # type: ignore[arg-type]


PLACES = np.arange(3)
WRONG = {
    "a shape": (lambda: attend(X, X[..., :2], X), ArgumentError, "key must have shape"),
    "a dtype": (lambda: attend(X, X.astype(np.int64), X), KindError, "key must be floating point"),
    "too many queries": (lambda: attend(X, X[:, :, :2], X[:, :, :2]), ArgumentError, "Tq <= Tk"),
    "no query positions": (lambda: attend(key_positions=PLACES), ArgumentError, "query_positions are needed"),
    "shape of positions": (lambda: attend(query_positions=PLACES[:2]), ArgumentError, "query_positions must have"),
    "dtype of positions": (lambda: attend(query_positions=PLACES * 1.0), KindError, "must be integers"),
    "a size like one before": (lambda: attend(sink=2.0, recent=4), KindError, "sink must be an integer"),
    "a size that is no number": (lambda: attend(sink=[2], recent=4), KindError, "sink must be an integer"),
    "an alignment like one before": (lambda: attend(sink=1, align=True), ArgumentError, "align must be an integer"),
    "a scale like one before": (lambda: attend(scale=True), ArgumentError, "scale must be a finite number"),
    "a parent that is later": (lambda: attend(parents=[-1, 1]), ArgumentError, "parent"),
    "too many nodes": (lambda: attend(parents=[-1, 0, 1, 2]), ArgumentError, "must be the last keys"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_right_calls_do_not_let_wrong_ones_pass(wrong: str) -> None:
    """Before, between and after them; each is refused each time."""
    call, error, message = WRONG[wrong]
    for _ in range(2):
        attend()
        attend(sink=2, recent=4)
        attend(sink=1, align=1)
        attend(scale=1)
        attend(scale=1.0)
        attend(query_positions=PLACES)
        attend(query_positions=PLACES, key_positions=PLACES)
        attend(parents=[-1, 0])
        with pytest.raises(error, match=message):
            call()


def test_plain_numbers_of_others_are_taken_again_and_again() -> None:
    for _ in range(2):
        window = checks.window_options("attention", np.int64(2), np.int32(4), np.int8(2))
        assert dict(window) == {"sink": 2, "recent": 4, "align": 2}
        assert {type(size) for size in window.values()} == {int}
        assert type(checks.check_scale("attention", np.float32(2))) is float


def test_full_groups_are_looked_at_each_time() -> None:
    half = X[:, :1]
    call = {"sink": 1, "recent": 3}
    for _ in range(2):
        ops.mixed_attention(X, half, half, half, half, full_groups=(True, False), **call)
        with pytest.raises(KindError, match="full_groups must hold True or False"):
            ops.mixed_attention(X, half, half, half, half, full_groups=(1, 0), **call)
        with pytest.raises(ArgumentError, match="full_key must have shape"):
            ops.mixed_attention(X, half, half, half, half, full_groups=(True, True), **call)
        with pytest.raises(ArgumentError, match="streaming cache must hold the window"):
            ops.mixed_attention(X, half, half, half[:, :, :2], half[:, :, :2], full_groups=(True, False), **call)


def test_what_checks_return_cannot_be_changed_for_others() -> None:
    sizes = checks.check_attention("attention", X, X, X)
    sizes["G"] = 7
    assert checks.check_attention("attention", X, X, X)["G"] == 2
    with pytest.raises(TypeError):
        checks.window_options("attention", 1, 2, 1)["sink"] = 3
    with pytest.raises(TypeError):
        checks.check_rule_options("verify_residual")["k"] = 3
