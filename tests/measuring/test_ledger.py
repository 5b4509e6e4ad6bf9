"""Nothing is measured twice, a file goes on where it ended, and a foreign one is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import random_ids, tiny_llama

from zigzag import ArgumentError, LayerPlan, Window
from zigzag.measuring import ledger as module
from zigzag.measuring.ledger import Ledger
from zigzag.measuring.prompts import PasskeyPrompt
from zigzag.measuring.trials import prompt_losses
from zigzag.plans.layers import kinds_of

CHOICES = [(True, False, False), (False, True, False), (False, False, True)]
WINDOW = Window(1, 3)


def prompt(seed: int) -> PasskeyPrompt:
    ids = tuple(random_ids(1, 24, seed)[0].tolist())
    return PasskeyPrompt(ids[:-2], ids[-2:], "", 0.5, seed)


PROMPTS = [prompt(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llama(3)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many plans each measurement had."""
    counts: list[int] = []

    def counted(model: Any, plans: list, prompts: list, **options: Any) -> np.ndarray:
        counts.append(len(plans))
        return prompt_losses(model, plans, prompts, **options)

    monkeypatch.setattr(module, "prompt_losses", counted)
    return counts


def test_what_is_known_is_not_measured_again(model: Any, measured: list[int]) -> None:
    done: list[int] = []
    ledger = Ledger(model, WINDOW, PROMPTS, advance=done.append)
    first = ledger.measure(CHOICES[:2])
    plans = [LayerPlan(kinds_of(choice), 1, 3) for choice in CHOICES[:2]]
    assert (first == prompt_losses(model, plans, PROMPTS)).all()
    again = ledger.measure([CHOICES[1], *CHOICES])
    assert (again[[1, 2]] == first).all() and (again[0] == first[1]).all() and measured == [2, 1]
    assert sum(done) == 6 * len(PROMPTS)
    assert ledger.measure([]).shape == (0, 3)


def test_what_was_given_up_is_measured_where_the_bound_asks_for_more(model: Any, measured: list[int]) -> None:
    ledger = Ledger(model, WINDOW, PROMPTS)
    low = 0.1 * float(Ledger(model, WINDOW, PROMPTS).measure(CHOICES[:1]).mean())
    assert np.isnan(ledger.measure(CHOICES[:1], low)).sum() == 2
    assert np.isnan(ledger.measure(CHOICES[:1], low)).sum() == 2 and measured == [1, 1]
    assert np.isfinite(ledger.measure(CHOICES[:1])).all() and measured == [1, 1, 1]
    ledger.measure(CHOICES[:1], low)
    assert measured == [1, 1, 1]


def test_a_file_goes_on_where_it_ended(model: Any, measured: list[int], tmp_path: Path) -> None:
    path = tmp_path / "losses.json"
    first = Ledger(model, WINDOW, PROMPTS, path=path).measure(CHOICES[:2])
    measured.clear()
    again = Ledger(model, WINDOW, PROMPTS, path=path)
    assert measured == [1], "one loss is measured again, on one prompt, to know the weights"
    assert (again.measure(CHOICES[:2]) == first).all() and measured == [1]
    again.measure(CHOICES)
    assert len(json.loads(path.read_text())["losses"]) == 3


@pytest.mark.parametrize(
    ("window", "prompts", "seed", "said"),
    [
        (Window(2, 3), PROMPTS, 0, "another window"),
        (WINDOW, PROMPTS[::-1], 0, "another prompts"),
        (WINDOW, PROMPTS[:2], 0, "file is damaged"),
        (WINDOW, PROMPTS, 1, "losses of other weights"),
    ],
)
def test_foreign_files_are_refused(
    model: Any, tmp_path: Path, window: Window, prompts: list, seed: int, said: str
) -> None:
    path = tmp_path / "losses.json"
    Ledger(model, WINDOW, PROMPTS, path=path).measure(CHOICES[:1])
    before = path.read_bytes()
    with pytest.raises(ArgumentError, match=said):
        Ledger(tiny_llama(3, seed=seed), window, prompts, path=path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "row", [[1.0, 2.0], [1.0, "2", 3.0], [None, 1.0, 1.0], [-1.0, 1.0, 1.0], {"0": 1.0}, [1, 2, 3]]
)
def test_damaged_files_are_refused(model: Any, tmp_path: Path, row: Any) -> None:
    path = tmp_path / "losses.json"
    Ledger(model, WINDOW, PROMPTS, path=path).measure(CHOICES[:1])
    content = json.loads(path.read_text())
    for losses in ({"Fss": row}, {"Fxs": [1.0, 1.0, 1.0]}, {"": [1.0, 1.0, 1.0]}, []):
        path.write_text(json.dumps(content | {"losses": losses}))
        with pytest.raises(ArgumentError, match="the file is damaged"):
            Ledger(model, WINDOW, PROMPTS, path=path)
    path.write_text(json.dumps(content | {"format": "another"}))
    with pytest.raises(ArgumentError, match="format 'zigzag-trial-losses' version 1 is needed"):
        Ledger(model, WINDOW, PROMPTS, path=path)
