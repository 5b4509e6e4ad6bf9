"""The search for a better choice of full layers: guess from what was measured, measure the best guesses, repeat.

It knows no model: what measures is given. Nothing in it is drawn at random, so the same losses give the same steps.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zigzag.measuring.surrogate import forecast

Choice = tuple[bool, ...]  # [L], True where a layer is full
Losses = NDArray[np.float64]
Measure = Callable[
    [Sequence[Choice], float], Losses
]  # (choices, bound) as `trials.prompt_losses` -> [choices, prompts]

BEAM = 4  # choices whose exchanges are candidates: the best that were measured


class Step(NamedTuple):
    """The best choice after `evaluations` measured ones, the first among them, and its mean loss."""

    choice: Choice
    loss: float
    evaluations: int


def search(start: Choice, measure: Measure, worth: Losses, *, budget: int, at_once: int) -> Iterator[Step]:
    """After each round of `at_once` measured choices the best one; first `start`. A later step is never worse.

    A choice is given up by `measure` as soon as it is certain to lose against the best one: what that says of it is the
    difference to `start` on the prompts that it was measured on.

    worth: [L] as of `surrogate.forecast`, under `start`
    budget: choices to measure in all; it ends before where no choice is left, or none can be better
    """
    record = _Record(start, measure([start], np.inf)[0])
    yield record.step
    while len(record.rows) < budget and record.step.loss > 0:
        asked = _proposals(record, worth)[: min(at_once, budget - len(record.rows))]
        if not asked:
            return
        record.add(asked, measure(asked, record.step.loss))
        yield record.step


def exchanges(choice: Choice) -> list[Choice]:
    """The choices with one full and one streaming layer exchanged.

    >>> exchanges((True, False, False))
    [(False, True, False), (False, False, True)]
    """
    found = []
    for out in (i for i, full in enumerate(choice) if full):
        for new in (i for i, full in enumerate(choice) if not full):
            changed = list(choice)
            changed[out], changed[new] = False, True
            found.append(tuple(changed))
    return found


class _Record:
    """What was measured: of each choice its losses, NaN where it was given up."""

    def __init__(self, start: Choice, row: Losses) -> None:
        self.start, self.rows = start, {start: row}
        self._best = Step(start, float(row.mean()), 1)

    @property
    def step(self) -> Step:
        return self._best._replace(evaluations=len(self.rows))

    def add(self, choices: Sequence[Choice], rows: Losses) -> None:
        for choice, row in zip(choices, rows, strict=True):
            self.rows[choice] = row
            if row.mean() < self._best.loss:  # a mean with NaN is not
                self._best = Step(choice, float(row.mean()), 0)

    def values(self) -> Losses:
        """[choices] the logarithm of the loss, where losses below the best one's count little.

        A logarithm, since one bad layer multiplies the loss by ten, and what matters lies at the small end.
        """
        first = self.rows[self.start]
        changes = [np.nanmean(row - first) for row in self.rows.values()]
        estimates = np.maximum(first.mean() + np.array(changes), 0)
        logarithms: Losses = np.log(estimates + self._best.loss)
        return logarithms


def _proposals(record: _Record, worth: Losses) -> list[Choice]:
    """Choices that were not measured, those with the lowest forecast first.

    They are one exchange away from a good one that was measured. On SmolLM2 several exchanges in a row, decided by the
    forecast alone, led whole rounds far away, to losses a hundred times higher.
    """
    seen, values = list(record.rows), record.values()
    beam = [seen[i] for i in np.argsort(values, kind="stable")[:BEAM]]
    around = chain.from_iterable(exchanges(choice) for choice in beam)
    new = list(dict.fromkeys(choice for choice in around if choice not in record.rows))
    if not new:
        return []
    start = np.array(record.start, dtype=float)
    changes = np.array(seen[1:], dtype=float).reshape(-1, len(start)) - start
    guesses = forecast(changes, values[1:] - values[0], np.array(new, dtype=float) - start, worth)
    return [new[i] for i in np.argsort(guesses, kind="stable")]
