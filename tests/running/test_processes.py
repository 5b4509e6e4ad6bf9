"""Processes that agree, played by threads over one store; torchrun's are in test_distributed.py."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch

from zigzag import LayerPlan, ProcessError
from zigzag.generation.drafting import LookupDrafter
from zigzag.running import processes
from zigzag.running.processes import Processes, described


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Processes]]:
    """Two processes over a store in memory, quick to find that one is dead."""
    monkeypatch.setattr(processes, "BEAT", 0.02)
    monkeypatch.setattr(processes, "DEAD", 0.5)
    store = torch.distributed.HashStore()
    store.set_timeout(timedelta(seconds=5))
    made = [Processes(None, (0, 1), store) for _ in range(2)]
    made[1].rank = 1
    yield made
    for each in made:
        each._stop.set()


def both(pair: list[Processes], work: Callable[[Processes], Any]) -> list[Any]:
    """What the work gives in each process, or raises."""
    found: list[Any] = [None, None]

    def run(rank: int) -> None:
        try:
            with pair[rank].call():
                found[rank] = work(pair[rank])
        except Exception as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    return found


def test_everybody_gets_what_everybody_gave(pair: list[Processes]) -> None:
    for _ in range(2):
        assert both(pair, lambda own: [own.gathered(f"{own.rank}{n}") for n in range(3)]) == 2 * [
            [["00", "10"], ["01", "11"], ["02", "12"]]
        ]


def test_what_differs_is_named_everywhere(pair: list[Processes]) -> None:
    for error in both(pair, lambda own: own.agree({"seed": own.rank, "plan": "x", "input_ids": [own.rank]})):
        assert isinstance(error, ProcessError)
        assert "rank 1 another seed, input_ids than rank 0" in str(error) and "plan" not in str(error)
    assert both(pair, lambda own: own.agree({"seed": 1})) == [None, None]


def test_a_failure_is_raised_by_those_that_wait(pair: list[Processes]) -> None:
    def work(own: Processes) -> None:
        if own.rank:
            raise ValueError("no such thing")
        own.gathered("")

    waiting, failing = both(pair, work)
    assert isinstance(failing, ValueError)
    assert isinstance(waiting, ProcessError) and "rank 1 failed: ValueError: no such thing" in str(waiting)
    assert both(pair, lambda own: own.gathered("x")) == 2 * [["x", "x"]]


def test_a_process_that_gives_no_sign_of_life_is_named(pair: list[Processes]) -> None:
    assert both(pair, lambda own: own.gathered("")) == 2 * [["", ""]]
    time.sleep(0.1)
    pair[1]._stop.set()
    with pytest.raises(ProcessError, match="rank 1 died"), pair[0].call():
        pair[0].gathered("")


def test_what_waits_in_a_sum_is_freed(pair: list[Processes], monkeypatch: pytest.MonkeyPatch) -> None:
    """The group is ended, once, and calls after that are refused."""
    ended: list[Any] = []
    monkeypatch.setattr(processes, "_abort", ended.append)
    monkeypatch.setattr(processes, "GRACE", 0.05)

    def work(own: Processes) -> None:
        if own.rank:
            raise ValueError("no")
        end = time.monotonic() + 5
        while not ended and time.monotonic() < end:
            time.sleep(0.01)
        raise RuntimeError("NCCL communicator was aborted")

    waiting, _ = both(pair, work)
    assert isinstance(waiting, ProcessError) and "rank 1 failed" in str(waiting) and len(ended) == 1
    with pytest.raises(ProcessError, match="started anew"), pair[0].call():
        pass


def test_an_error_of_ones_own_stays_what_it_is(pair: list[Processes]) -> None:
    with pytest.raises(ValueError, match="mine"), pair[0].call():
        raise ValueError("mine")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 2),
        ([1, 2], [2, 1]),
        (LayerPlan(("full",), 1, 3), LayerPlan(("full",), 1, 4)),
        ({"a": 1}, {"a": 2}),
        (LookupDrafter(longest_ngram=2), LookupDrafter(longest_ngram=3)),
        (None, LookupDrafter()),
    ],
)
def test_words_say_what_is_given(one: Any, other: Any) -> None:
    assert described(one) != described(other)


def test_words_are_the_same_in_every_process() -> None:
    """No addresses, no order of sets, nothing that a run left behind."""
    assert described({"b", "a"}) == described({"a", "b"})
    assert described(torch.ones(2)) == described(torch.zeros(2)) == "Tensor"
    assert described(LookupDrafter()) == described(LookupDrafter())
    assert "0x" not in described([print, LookupDrafter(), object()])
