"""Ties and bounds of the filters, in rows long enough that an unstable sort would show."""

import numpy as np

from zigzag.reference.sampling import draw, sample, to_probs

EVEN = np.zeros(200)


def kept(**options: float) -> list[int]:
    return np.flatnonzero(to_probs(EVEN, **options)).tolist()


def test_ties_go_to_the_smaller_id() -> None:
    assert kept(top_p=0.5) == list(range(100)) and kept(top_p=1e-9) == [0]
    assert kept(top_k=3) == list(range(200)), "ties of top-k stay together"
    assert kept(temperature=0.0) == [0] and kept(min_p=1.0) == list(range(200))


def test_each_filter_sees_what_the_one_before_left() -> None:
    probs = np.array([0.4, 0.3, 0.2, 0.1])
    logits = np.log(probs)
    np.testing.assert_allclose(to_probs(logits, top_k=2), [4 / 7, 3 / 7, 0, 0])
    np.testing.assert_allclose(to_probs(logits, top_k=2, top_p=0.5), [1, 0, 0, 0])  # 0.4 alone is not half
    np.testing.assert_allclose(to_probs(logits, top_p=0.5), [4 / 7, 3 / 7, 0, 0])
    np.testing.assert_allclose(to_probs(logits, min_p=0.5), [4 / 9, 3 / 9, 2 / 9, 0])
    np.testing.assert_allclose(to_probs(logits, temperature=0.5), probs**2 / (probs**2).sum())
    np.testing.assert_allclose(to_probs(np.stack([logits, logits[::-1]]), top_p=0.5)[1], [0, 0, 3 / 7, 4 / 7])


def test_rows_that_say_nothing_give_nan() -> None:
    for row in ([np.nan, 0.0], [np.inf, 0.0], [-np.inf, -np.inf]):
        for options in ({}, {"temperature": 0.0}, {"top_k": 1}, {"top_p": 0.5}, {"min_p": 0.5}):
            assert np.isnan(to_probs([row], **options)).any(), (row, options)
    np.testing.assert_allclose(to_probs([-np.inf, 0.0]), [0, 1])


def test_draws() -> None:
    weights = np.array([0.0, 2.0, np.nan, 6.0, -1.0])
    assert [draw(weights, u) for u in (0.0, 0.2499, 0.25, 0.9999, 1.0)] == [1, 1, 3, 3, 3]
    assert draw(np.zeros(3), 0.5) == -1 and draw(np.array([np.nan]), 0.5) == -1
    rows = np.array([[[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]])
    assert sample(rows, np.array([[0.9, 0.0, 0.5]])).tolist() == [[0, 1, 1]]
    assert sample(rows, np.array([[0.9, 0.0, 0.4]])).dtype == np.int64
