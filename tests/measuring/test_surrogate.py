"""The guess meets what was measured, and learns layers and pairs."""

from itertools import combinations

import numpy as np

from zigzag.measuring.surrogate import forecast

LAYERS, FULL = 8, 3
START = np.array([1.0] * FULL + [0.0] * (LAYERS - FULL))
RNG = np.random.default_rng(0)
WORTH = RNG.normal(size=LAYERS)
SINGLE = RNG.normal(size=LAYERS)
PAIR = np.triu(RNG.normal(size=(LAYERS, LAYERS)), 1)
ALL = np.array([[float(i in full) for i in range(LAYERS)] for full in combinations(range(LAYERS), FULL)]) - START
CHANGES = ALL[np.abs(ALL).sum(axis=1) > 0]


def test_layers_are_learnt() -> None:
    values = CHANGES @ SINGLE
    told = forecast(CHANGES[:30], values[:30], CHANGES[30:], WORTH)
    assert np.corrcoef(told, values[30:])[0, 1] > 0.99


def test_pairs_are_learnt_and_layers_alone_would_not_do() -> None:
    values = CHANGES @ SINGLE + np.einsum("ni,ij,nj->n", CHANGES, PAIR, CHANGES)
    told = forecast(CHANGES[::2], values[::2], CHANGES[1::2], WORTH)
    alone = CHANGES[1::2] @ np.linalg.lstsq(CHANGES[::2], values[::2], rcond=None)[0]
    error, linear = (np.abs(guess - values[1::2]).mean() for guess in (told, alone))
    assert error < 0.5 * linear


def test_what_was_measured_is_met() -> None:
    values = CHANGES @ SINGLE
    told = forecast(CHANGES[:9], values[:9], CHANGES[:9], WORTH)
    np.testing.assert_allclose(told, values[:9], atol=0.05 * np.abs(values).max())


def test_the_worth_decides_first_and_is_a_prior_after() -> None:
    nothing = forecast(CHANGES[:0], np.zeros(0), CHANGES, WORTH)
    assert (nothing == -(CHANGES @ WORTH)).all()
    values = CHANGES @ -WORTH
    right, wrong = (forecast(CHANGES[:3], values[:3], CHANGES, worth) for worth in (WORTH, SINGLE))
    assert np.abs(right - values).mean() < np.abs(wrong - values).mean()
    assert np.isfinite(forecast(CHANGES[:3], values[:3], CHANGES, 0 * WORTH)).all()
