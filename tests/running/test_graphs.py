"""The life of a step, with a graph that is a function: run, captured, replayed from its own buffers, forgotten."""

from typing import Any

import pytest
import torch
from replays import FakeStep

from zigzag import CacheError, ModelError
from zigzag.running import graphs
from zigzag.running.graphs import Steps

CPU = torch.device("cpu")


def work(ids: torch.Tensor, places: torch.Tensor, hidden: torch.Tensor | None) -> torch.Tensor:
    return ids.sum() + 10 * places.sum() + (0 if hidden is None else 100 * hidden.sum())


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[FakeStep]:
    """The steps that were captured."""
    found: list[FakeStep] = []

    def captured(*given: Any) -> FakeStep:
        found.append(FakeStep(*given))
        return found[-1]

    monkeypatch.setattr(graphs, "_captured", captured)
    return found


def given(value: int, *, width: int = 1, hidden: float | None = None) -> tuple[Any, ...]:
    ids, places = torch.full((1, width), value), torch.full((3, 1, width), value + 1)
    return width, work, CPU, ids, places, None if hidden is None else torch.full((1, width, 2), hidden)


def test_run_captured_replayed_forgotten(captures: list[FakeStep]) -> None:
    steps = Steps()
    with pytest.raises(CacheError, match=r"no step of 1 has been captured: run it twice"):
        steps.captured(1)
    for value in range(4):
        assert float(steps.run(*given(value))) == value + 30 * (value + 1)
        assert len(captures) == (1 if value else 0)
        if not value:
            with pytest.raises(CacheError, match="run it twice"):
                steps.captured(1)
    assert captures[0].replays == 3 and steps.captured(1) is captures[0]
    assert [each.unique().tolist() for each in captures[0].given[:2]] == [[3], [4]]
    steps.run(*given(1, width=2))
    steps.run(*given(1, width=2))
    assert len(captures) == 2, "each by itself"
    steps.forget()
    steps.run(*given(5))
    assert len(captures) == 2
    steps.run(*given(5))
    assert len(captures) == 3


def test_what_is_given_goes_into_the_step(captures: list[FakeStep]) -> None:
    steps = Steps()
    for value in range(3):
        assert float(steps.run(*given(value, hidden=float(value)))) == value + 30 * (value + 1) + 200 * value
    with pytest.raises(CacheError, match="1 was captured with other tensors missing"):
        steps.run(*given(1))
    other = Steps()
    other.run(*given(1)), other.run(*given(1))
    with pytest.raises(CacheError, match="other tensors missing"):
        other.run(*given(1, hidden=1.0))


def test_the_next_replay_overwrites(captures: list[FakeStep]) -> None:
    steps = Steps()
    first, second, third = (steps.run(*given(value)) for value in range(3))
    assert float(first) == 30 and second is third


def test_no_more_than_so_many_are_kept(captures: list[FakeStep], monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were used last: what comes once pushes out what is not used."""
    monkeypatch.setattr(graphs, "MOST", 2)
    steps = Steps()
    for width in (1, 1, 2, 1, 3, 1, 4, 4, 1):
        assert float(steps.run(*given(2, width=width))) == (2 + 90) * width
    assert [step.given[0].shape[1] for step in captures] == [1, 4] and captures[0].replays == 4
    steps.run(*given(2, width=5)), steps.run(*given(2, width=6))
    with pytest.raises(CacheError, match="no step of 1"):
        steps.captured(1)


@pytest.mark.parametrize("must", [False, True])
def test_what_cannot_be_captured(must: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """It runs as it is and is not tried again; where graphs must be it is an error."""
    tried: list[int] = []

    def fail(*_: Any) -> FakeStep:
        tried.append(1)
        raise RuntimeError("operation not permitted\nand much more")

    monkeypatch.setattr(graphs, "_captured", fail)
    steps = Steps(must=must)
    assert float(steps.run(*given(1))) == 61
    if must:
        with pytest.raises(ModelError, match=r"cannot be captured \(operation not permitted\); leave it out"):
            steps.run(*given(2))
        return
    with caplog.at_level("INFO", logger="zigzag"):
        for value in (2, 3):
            assert float(steps.run(*given(value))) == value + 30 * (value + 1)
            assert float(steps.run(*given(value, width=2))) > 0
    assert len(tried) == 1
    assert caplog.text.count("cannot be captured (operation not permitted)") == 1
