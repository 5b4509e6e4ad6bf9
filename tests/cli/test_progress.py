"""Progress of long work: a bar in a terminal, elsewhere a line every half minute, from every command."""

import io
import os
import subprocess
import sys
from time import monotonic, sleep

import pytest

pytest.importorskip("typer", reason="typer is not installed")
pytest.importorskip("rich", reason="rich is not installed")

from rich.console import Console

from zigzag.cli import progress as work
from zigzag.cli.options import run
from zigzag.cli.progress import Activity, beat, doing, heartbeat, progress
from zigzag.reference.errors import ZigzagError


class FakeTime:
    """A clock that moves when somebody waits; the wait is cut short after so many."""

    def __init__(self, waits: int) -> None:
        self.now, self.left, self.asked = monotonic(), waits, list[float]()

    def clock(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.asked.append(seconds)
        self.now += seconds
        self.left -= 1
        return self.left < 0


def log() -> Console:
    return Console(file=io.StringIO(), width=20)


def test_a_line_every_half_minute() -> None:
    """Of the innermost activity, also while it does not move on; none after the end."""
    shown: list[str] = []
    with progress(log(), "prompts of a run", 5000) as advance:
        advance(1000)
        time = FakeTime(2)
        beat(shown.append, time.wait, time.clock)
        with doing(log(), "loading [x]"):
            time = FakeTime(1)
            beat(shown.append, time.wait, time.clock)
        advance(2000)
        time = FakeTime(1)
        beat(shown.append, time.wait, time.clock)
    time = FakeTime(3)
    beat(shown.append, time.wait, time.clock)
    assert shown == [
        "prompts of a run: 1,000 of 5,000 after 30 s",
        "prompts of a run: 1,000 of 5,000 after 60 s",
        "loading [x]: for 30 s",
        "prompts of a run: 3,000 of 5,000 after 30 s",
    ]
    assert time.asked == [30.0] * 4


def test_seconds_are_since_the_activity_began() -> None:
    assert Activity("x", 100.0).told(1_334.4) == "x: for 1,234 s"
    assert Activity("x", 100.0, 7, 3).told(131.0) == "x: 3 of 7 after 31 s"


def test_an_error_ends_an_activity() -> None:
    with pytest.raises(KeyError), progress(log(), "x", 1), doing(log(), "y"):
        raise KeyError
    assert work._doing == []


def test_every_command_has_a_heartbeat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One that says nothing by itself, and one that counts; on stderr, and no more once it is done."""
    monkeypatch.setattr(work, "EVERY", 0.02)
    lines: list[str] = []

    def until(text: str) -> None:
        end = monotonic() + 30
        while text not in "".join(lines):
            assert monotonic() < end, lines
            sleep(0.01)
            told = capsys.readouterr()
            lines.append(told.err)
            assert told.out == ""

    def command() -> None:
        until("at work: for 0 s\n")
        with progress(Console(), "a name that is much longer than the terminal is wide, " * 3, 9) as advance:
            advance(4)
            until("a name that is much longer than the terminal is wide, : 4 of 9 after 0 s\n")

    run(command)
    capsys.readouterr()
    sleep(0.1)
    assert capsys.readouterr().err == "" and work._doing == []


def test_an_error_ends_the_heartbeat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise ZigzagError("that is wrong")

    with pytest.raises(SystemExit):
        run(command)
    assert capsys.readouterr().err == "error: that is wrong\n"
    monkeypatch.setattr(work, "EVERY", 0.01)
    sleep(0.1)
    assert capsys.readouterr().err == ""


def test_a_terminal_has_bars_instead(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(work, "EVERY", 0.01)
    monkeypatch.setenv("FORCE_COLOR", "1")  # by which rich takes any output for a terminal
    screen = Console(file=io.StringIO(), force_terminal=True, width=60)
    with heartbeat(), progress(screen, "prompts", 3) as advance:
        advance(2)
        sleep(0.1)
    assert capsys.readouterr().err == "" and "2/3" in screen.file.getvalue()
    with doing(screen, "loading"):
        pass
    assert "loading" in screen.file.getvalue()


CODE = """
import time
from zigzag.cli import progress
from zigzag.cli.app import app, app_entry
progress.EVERY = 0.05

@app.command()
def idle():
    print("data")
    time.sleep(0.5)

app_entry()
"""


def test_in_a_process_of_its_own() -> None:
    """Through the console script's own function, into a pipe: lines beside the data, none among it."""
    env = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "TTY_COMPATIBLE")}
    done = subprocess.run([sys.executable, "-c", CODE, "idle"], capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0 and done.stdout == "data\n", done.stderr
    assert set(done.stderr.splitlines()) <= {"at work: for 0 s", "at work: for 1 s"} and done.stderr
