"""A guess at the loss of plans from those that were measured: a Gaussian process over the layers that were exchanged.

What a plan differs in from the one that the search began with counts by layer and by pair of layers, and by the
first-order worth of what was exchanged. How much pairs count, and how exactly the guess must meet what was measured, is
what forecasts each measured plan best from all others (leave-one-out, Rasmussen and Williams, section 5.4.2).
"""

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.float64]

PAIRS = (0.03, 0.1, 0.3, 1.0)  # weights of pairs of layers, where a layer by itself has 1
NOISES = (1e-4, 1e-2, 1e-1)  # variance that is not the layers'


def forecast(seen: Reals, values: Reals, asked: Reals, worth: Reals) -> Reals:
    """[m] what `asked` is expected to give if `seen` gave `values`.

    seen [n, L], asked [m, L]: change of each layer from the first plan: 1 it became full, -1 it streams, 0 as it was
    values: [n] change of the value from the first plan's, which itself is known and not among `seen`
    worth: [L] what each layer's full cache is worth by first order, in any unit; larger is better

    Without anything seen the worth alone decides.

    >>> none = np.zeros((0, 2))
    >>> forecast(none, np.zeros(0), np.array([[1.0, -1.0]]), np.array([3.0, 1.0]))
    array([-2.])
    """
    if not len(seen):
        first: Reals = -(asked @ worth)
        return first
    unit = worth / (np.abs(worth).max() or 1.0)
    pairs, noise = min(((p, n) for p in PAIRS for n in NOISES), key=lambda each: _left_out(seen, values, unit, *each))
    weights = np.linalg.solve(_kernel(seen, seen, unit, pairs) + noise * np.eye(len(seen)), values)
    expected: Reals = _kernel(asked, seen, unit, pairs) @ weights
    return expected


def _kernel(left: Reals, right: Reals, unit: Reals, pairs: float) -> Reals:
    both: Reals = left @ right.T
    covariance: Reals = both + pairs * both**2 + np.outer(left @ unit, right @ unit)
    return covariance


def _left_out(seen: Reals, values: Reals, unit: Reals, pairs: float, noise: float) -> float:
    """Mean squared error of each value's forecast from the others."""
    inverse = np.linalg.inv(_kernel(seen, seen, unit, pairs) + noise * np.eye(len(seen)))
    return float((((inverse @ values) / np.diag(inverse)) ** 2).mean())
