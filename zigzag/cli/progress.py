"""Progress of long work: a bar or a spinner in a terminal; in a log a line every 30 seconds, whatever is being done.

`heartbeat` stands around every command (`options.run`), so none is silent for long, also where one step takes minutes.
Its lines go to stderr, since stdout may be data. Commands say what they are doing by `progress` and `doing`.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

Advance = Callable[[int], object]
EVERY = 30.0  # seconds between lines where the output is no terminal


@dataclass
class Activity:
    """What is being done since `begin`; with a total, `done` of it so far."""

    what: str
    begin: float
    total: int | None = None
    done: int = 0

    def advance(self, count: int) -> None:
        self.done += count

    def reached(self, done: int, total: int) -> None:
        self.done, self.total = done, total

    def told(self, now: float) -> str:
        seconds = f"{now - self.begin:,.0f} s"
        if self.total is None:
            return f"{self.what}: for {seconds}"
        return f"{self.what}: {self.done:,} of {self.total:,} after {seconds}"


_doing: list[Activity] = []  # the innermost last; a process runs one command


@contextmanager
def progress(console: Console, what: str, total: int) -> Iterator[Advance]:
    """A bar while the block runs, or lines in a log; yields what moves it on by so many of `total`."""
    with activity(what, total) as begun:
        if not console.is_terminal:
            yield begun.advance
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console) as bars:
            task = bars.add_task(what, total=total)
            yield lambda count: bars.advance(task, count)


@contextmanager
def doing(console: Console, what: str) -> Iterator[None]:
    """A spinner while the block runs, or lines in a log: for work that cannot be counted."""
    with activity(what), console.status(what):
        yield


@contextmanager
def heartbeat() -> Iterator[None]:
    """While the block runs, a line every 30 seconds, unless the output is a terminal, which shows bars instead."""
    if Console().is_terminal:
        yield
        return
    stop, log = Event(), Console(file=sys.stderr)  # as it is now: tests that a command runs may take it away
    thread = Thread(
        target=beat,
        args=(lambda line: log.print(line, markup=False, highlight=False, soft_wrap=True), stop.wait),
        daemon=True,
    )
    with activity("at work"):
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def beat(show: Callable[[str], object], wait: Callable[[float], bool], clock: Callable[[], float] = monotonic) -> None:
    """Show what the innermost activity has to tell, after each wait that was not cut short."""
    while not wait(EVERY):
        for innermost in _doing[-1:]:
            show(innermost.told(clock()))


@contextmanager
def activity(what: str, total: int | None = None) -> Iterator[Activity]:
    """What `heartbeat` tells while the block runs; yields what says how far it is."""
    begun = Activity(what, monotonic(), total)
    _doing.append(begun)
    try:
        yield begun
    finally:
        _doing.remove(begun)
