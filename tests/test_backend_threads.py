"""Registering and choosing a backend by many threads and tasks at once (`zigzag.backends.registry`)."""

import asyncio
import logging
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from threading import Barrier, Lock, get_ident
from typing import Any

import numpy as np
import pytest

import zigzag
from zigzag import ops, reference
from zigzag.backends import registry

POSITIONS = np.arange(3)
THREADS, ROUNDS = 8, 40


class Named:
    """A backend whose op answers with its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def visible(self, *args: Any, **kwargs: Any) -> str:
        return self.name


@pytest.fixture(autouse=True)
def often() -> Iterator[None]:
    """Threads take turns a thousand times as often as usual; no choice and no name is left."""
    interval, names = sys.getswitchinterval(), set(registry._registered)
    sys.setswitchinterval(5e-6)
    registry.forget_choices()
    yield
    sys.setswitchinterval(interval)
    for name in set(registry._registered) - names:
        zigzag.unregister_backend(name)


def at_once(work: Callable[[int], object]) -> list[Any]:
    """What `work` gives in each of THREADS threads that begin together; a thread's error is raised."""
    barrier = Barrier(THREADS)

    def begin(number: int) -> object:
        barrier.wait(timeout=30)
        return work(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return [future.result(timeout=60) for future in [pool.submit(begin, n) for n in range(THREADS)]]


def asked(name: str = "auto") -> object:
    return ops.visible(POSITIONS, POSITIONS, backend=name)


def test_one_name_goes_to_one_thread() -> None:
    for turn in range(ROUNDS):
        backends = [Named(f"{n}") for n in range(THREADS)]
        won = at_once(lambda n, turn=turn, backends=backends: registered(f"contested-{turn}", backends[n]))
        assert won.count(True) == 1 and zigzag.backends.get_backend(f"contested-{turn}") is backends[won.index(True)]


def registered(name: str, backend: object) -> bool:
    try:
        zigzag.register_backend(name, backend)
    except zigzag.BackendError:
        return False
    return True


def test_two_that_see_a_free_name_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check above would see it: without the lock, and with a moment between the look and the writing."""

    class Slow(dict):
        def __contains__(self, name: object) -> bool:
            found = super().__contains__(name)
            if not found:
                together.wait(timeout=30)  # until all have looked
            return found

    class NoLock:
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    together = Barrier(THREADS)
    monkeypatch.setattr(registry, "_registered", Slow())
    monkeypatch.setattr(registry, "_writing", NoLock())
    assert at_once(lambda n: registered("contested", Named(f"{n}"))).count(True) == THREADS


def test_threads_register_choose_and_take_away() -> None:
    """Each its own name, which must answer while the others come and go; a list may be asked for at any time."""

    def work(number: int) -> None:
        for turn in range(ROUNDS):
            name = f"own-{number}-{turn % 3}"
            zigzag.register_backend(name, Named(name))
            with zigzag.use_backend(name):
                assert asked() == name
            assert asked(name) == name and name in zigzag.backends.backend_names()
            zigzag.unregister_backend(name)
            with pytest.raises(zigzag.BackendError, match="is not known"):
                asked(name)

    at_once(work)


def test_a_name_that_comes_and_goes() -> None:
    """Who asks meanwhile gets the backend or a BackendError, and none that was taken away."""
    turn, seen = [0], []
    done = Lock()

    def work(number: int) -> None:
        if number == 0:
            for turn[0] in range(ROUNDS * 5):
                zigzag.register_backend("fleeting", Named(f"{turn[0]}"))
                zigzag.unregister_backend("fleeting")
            done.acquire()
        while not done.locked():
            earliest = turn[0]
            try:
                answer = asked("fleeting")
            except zigzag.BackendError:
                continue
            assert int(str(answer)) >= earliest
            seen.append(answer)

    at_once(work)
    assert turn == [ROUNDS * 5 - 1]


def test_a_choice_stays_in_its_thread() -> None:
    names = [f"thread-{n}" for n in range(THREADS)]
    for name in names:
        zigzag.register_backend(name, Named(name))

    def work(number: int) -> set[object]:
        found = set()
        for _ in range(ROUNDS):
            with zigzag.use_backend(names[number]):
                with zigzag.use_backend(names[number - 1]):
                    found.add((1, asked()))
                found.add((0, asked()))
        assert isinstance(asked(), np.ndarray)
        return found

    assert at_once(work) == [{(0, names[n]), (1, names[n - 1])} for n in range(THREADS)]


def test_a_choice_stays_in_its_task() -> None:
    """Tasks take turns inside of their blocks; what a task starts has its choice, also in a thread."""
    names = [f"task-{n}" for n in range(THREADS)]
    for name in names:
        zigzag.register_backend(name, Named(name))
    idents = set()

    async def work(name: str) -> set[object]:
        found = set()
        with zigzag.use_backend(name):
            for _ in range(5):
                await asyncio.sleep(0)
                found.add(asked())
            found.add(await asyncio.to_thread(lambda: (idents.add(get_ident()), asked())[1]))
            found.add(await asyncio.create_task(later()))
        assert isinstance(asked(), np.ndarray)
        return found

    async def later() -> object:
        await asyncio.sleep(0)
        return asked()

    async def main() -> list[set[object]]:
        return await asyncio.gather(*map(work, names))

    assert asyncio.run(main()) == [{name} for name in names]
    assert idents - {get_ident()}


def test_a_cancelled_task_leaves_no_choice() -> None:
    zigzag.register_backend("slow", Named("slow"))

    async def main() -> object:
        async def work() -> None:
            with zigzag.use_backend("slow"):
                await asyncio.sleep(60)

        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return asked()

    assert isinstance(asyncio.run(main()), np.ndarray)


def test_a_choice_that_is_copied_is_a_copy() -> None:
    zigzag.register_backend("copied", Named("copied"))
    with zigzag.use_backend("copied"):
        context = copy_context()
        with zigzag.use_backend("numpy"):
            assert context.run(asked) == "copied" and isinstance(asked(), np.ndarray)
    assert context.run(asked) == "copied" and isinstance(asked(), np.ndarray)


def test_an_automatic_choice_is_told_once_by_many_threads(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="zigzag"):
        for turn in range(ROUNDS):
            registry._announced.clear()
            registry.forget_choices()
            caplog.clear()
            found = at_once(lambda n: asked())
            assert len(caplog.records) == 1, turn
            assert all(np.array_equal(each, reference.visible(POSITIONS, POSITIONS)) for each in found)
