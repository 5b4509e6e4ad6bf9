"""The life of a step, with a graph that is a function: run, captured, replayed from its own buffers, forgotten."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from zigzag import CacheError, ModelError
from zigzag.running import graphs
from zigzag.running.graphs import Step, Steps
from zigzag.running.host import Output


def forward(ids: torch.Tensor, places: torch.Tensor, hidden: torch.Tensor | None) -> Output:
    states = ids.sum() + 10 * places.sum() + (0 if hidden is None else 100 * hidden.sum())
    return Output(states + 0.5, states.clone())


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the steps that were captured. A replay writes the same output anew, from the step's buffers."""
    found: list[tuple[int, ...]] = []

    def captured(forward: Any, ids: torch.Tensor, places: torch.Tensor, hidden: torch.Tensor | None) -> Step:
        found.append(tuple(ids.shape))
        own = ids * 0, places * 0, None if hidden is None else hidden * 0
        output = forward(*own)

        def replay() -> None:
            new = forward(*own)
            output.logits.copy_(new.logits), output.states.copy_(new.states)

        return Step(SimpleNamespace(replay=replay), *own, output)  # type: ignore[arg-type]

    monkeypatch.setattr(graphs, "_captured", captured)
    return found


def given(value: int, *, width: int = 1, hidden: float | None = None) -> tuple[Any, ...]:
    ids, places = torch.full((1, width), value), torch.full((3, 1, width), value + 1)
    return forward, ids, places, None if hidden is None else torch.full((1, width, 2), hidden)


def test_run_captured_replayed_forgotten(captures: list[tuple[int, ...]]) -> None:
    steps = Steps()
    with pytest.raises(CacheError, match=r"no step of shape \[1, 1\] has been captured: run it twice"):
        steps.captured((1, 1))
    for value in range(4):
        output = steps.run(*given(value), keep_states=False)
        assert float(output.states) == value + 30 * (value + 1) and float(output.logits) == float(output.states) + 0.5
        assert captures == ([(1, 1)] if value else [])
        if not value:
            with pytest.raises(CacheError, match="run it twice"):
                steps.captured((1, 1))
    assert steps.captured((1, 1)).ids.tolist() == [[3]] and steps.captured((1, 1)).places.unique().tolist() == [4]
    steps.run(*given(1, width=2), keep_states=False)
    steps.run(*given(1, width=2), keep_states=False)
    assert captures == [(1, 1), (1, 2)], "each shape by itself"
    steps.forget()
    steps.run(*given(5), keep_states=False)
    assert len(captures) == 2
    steps.run(*given(5), keep_states=False)
    assert captures[2:] == [(1, 1)]


def test_states_go_into_the_step(captures: list[tuple[int, ...]]) -> None:
    steps = Steps()
    for value in range(3):
        output = steps.run(*given(value, hidden=float(value)), keep_states=False)
        assert float(output.states) == value + 30 * (value + 1) + 200 * value
    with pytest.raises(CacheError, match=r"a step of shape \[1, 1\] was captured with states"):
        steps.run(*given(1), keep_states=False)
    other = Steps()
    other.run(*given(1), keep_states=False), other.run(*given(1), keep_states=False)
    with pytest.raises(CacheError, match="captured without states"):
        other.run(*given(1, hidden=1.0), keep_states=False)


@pytest.mark.parametrize("keep_states", [True, False])
def test_states_that_are_kept_are_a_copy(captures: list[tuple[int, ...]], keep_states: bool) -> None:
    steps = Steps()
    steps.run(*given(0), keep_states=keep_states)
    first = steps.run(*given(1), keep_states=keep_states)
    steps.run(*given(2), keep_states=keep_states)
    assert (float(first.states) == 61) == keep_states and float(first.logits) == 92.5, "logits are read at once"


@pytest.mark.parametrize("must", [False, True])
def test_what_cannot_be_captured(must: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """It runs as it is and is not tried again; where graphs must be it is an error."""
    tried: list[int] = []

    def fail(*_: Any) -> Step:
        tried.append(1)
        raise RuntimeError("operation not permitted\nand much more")

    monkeypatch.setattr(graphs, "_captured", fail)
    steps = Steps(must=must)
    assert float(steps.run(*given(1), keep_states=False).states) == 61
    if must:
        with pytest.raises(ModelError, match=r"cannot be captured \(operation not permitted\); leave it out"):
            steps.run(*given(2), keep_states=False)
        return
    with caplog.at_level("INFO", logger="zigzag"):
        for value in (2, 3):
            assert float(steps.run(*given(value), keep_states=False).states) == value + 30 * (value + 1)
            assert float(steps.run(*given(value, width=2), keep_states=False).states) > 0
    assert len(tried) == 1
    assert caplog.text.count("cannot be captured (operation not permitted)") == 1
