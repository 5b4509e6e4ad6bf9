"""The loop of a run, driven by one that only counts."""

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from trainings import Clock  # noqa: E402

from zigzag import ArgumentError, ModelError  # noqa: E402
from zigzag.training import state as files  # noqa: E402
from zigzag.training.loop import Pace, begun, fitted, run_steps  # noqa: E402


class Counting:
    """Its loss at step n is n + 1, or what `losses` says; a step takes a second of the clock."""

    def __init__(self, steps: int, clock: Clock | None = None, **losses: float) -> None:
        self.steps, self.clock, self.step_number = steps, clock or Clock(), 0
        self.losses = {int(name[1:]): loss for name, loss in losses.items()}

    def step(self) -> Any:
        self.clock.now += 1
        self.step_number += 1
        return torch.tensor(self.losses.get(self.step_number, float(self.step_number)))

    def judged(self) -> dict[str, Any]:
        return {"told": 10 * self.step_number}

    def state(self) -> dict[str, Any]:
        return {"count": torch.tensor(self.step_number)}

    def load(self, tensors: dict[str, Any], step: int) -> None:
        assert int(tensors["count"]) == step
        self.step_number = step

    def keep(self, out: Path) -> None:
        (out / "kept").write_text(str(self.step_number))


def meta() -> dict[str, Any]:
    return {"asked": 1, "step": 0, "seconds": 0.0}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("zigzag.training.loop.monotonic", made)
    return made


def test_lines_and_checkpoints(tmp_path: Path, clock: Clock) -> None:
    said: list[str] = []
    assert run_steps("op", Counting(7, clock), tmp_path, meta(), Pace(3, 5), said.append)
    assert files.read_log(tmp_path) == [
        {"step": 3, "loss": 2.0, "told": 30, "seconds": 3.0},
        {"step": 6, "loss": 5.0, "told": 60, "seconds": 6.0},
        {"step": 7, "loss": 7.0, "told": 70, "seconds": 7.0},
    ]
    assert said[0] == "3 s: step 3 of 7, loss 2, told 30"
    tensors, told = files.load_state(tmp_path)
    assert int(tensors["count"]) == 7 and (told["step"], told["seconds"], told["asked"]) == (7, 7.0, 1)
    assert (tmp_path / "kept").read_text() == "7"


def test_time_is_up(tmp_path: Path, clock: Clock) -> None:
    """Saved where it stopped, and it goes on from there; its seconds are those of both parts."""
    asked = {"asked": 1}
    assert not run_steps("op", Counting(9, clock), tmp_path, meta(), Pace(4, 4, 5.0), lambda said: None)
    tensors, told = begun("op", tmp_path, asked, resume=True)
    assert told["step"] == 6 and (tmp_path / "kept").read_text() == "6"
    run = Counting(9, clock)
    run.load(tensors, told["step"])
    assert run_steps("op", run, tmp_path, told, Pace(4, 4, 5.0), lambda said: None)
    assert [line["step"] for line in files.read_log(tmp_path)] == [4, 6, 8, 9]
    assert files.load_state(tmp_path)[1]["seconds"] == 9.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite(tmp_path: Path, bad: float) -> None:
    """At a line of the log or at a checkpoint, whichever comes first: nothing is saved after it."""
    with pytest.raises(ModelError, match=r"op: the loss is (nan|inf) at step 6; .*smaller --learning-rate"):
        run_steps("op", Counting(9, s5=bad), tmp_path, meta(), Pace(6, 4), lambda said: None)
    with pytest.raises(ModelError, match="at step 8"):
        run_steps("op", Counting(9, s7=bad), tmp_path, meta(), Pace(20, 4), lambda said: None)
    assert int(files.load_state(tmp_path)[0]["count"]) == 4 and (tmp_path / "kept").read_text() == "4"


def test_begun(tmp_path: Path) -> None:
    asked = {"asked": (1, 2)}
    assert begun("op", tmp_path, asked, resume=False) == ({}, {"asked": [1, 2], "step": 0, "seconds": 0.0})
    with pytest.raises(ModelError, match="--resume needs"):
        begun("op", tmp_path, asked, resume=True)
    files.save_state(tmp_path, {"count": torch.tensor(3)}, {"asked": [1, 2], "step": 3})
    assert begun("op", tmp_path, asked, resume=True)[1]["step"] == 3
    with pytest.raises(ModelError, match=r"op: .* other settings or another model"):
        begun("op", tmp_path, {"asked": (1, 3)}, resume=True)
    with pytest.raises(ArgumentError, match="holds a run"):
        begun("op", tmp_path, asked, resume=False)


def test_as_many_steps_as_fit(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were tried take time of their own and are not the run's; the device is waited for at both ends."""
    made: list[Counting] = []
    waited: list[tuple[Any, int]] = []
    device = torch.device("cpu")
    monkeypatch.setattr("zigzag.training.loop._wait_for", lambda on: waited.append((on, made[-1].step_number)))

    def make(steps: int) -> Counting:
        made.append(Counting(steps, clock))
        return made[-1]

    run = fitted(make, 50, 31.0, device)
    assert run is made[1] and (run.steps, run.step_number) == (18, 0)  # 0.9 of 31 - 11 seconds
    assert (made[0].steps, made[0].step_number) == (50, 11) and waited == [(device, 3), (device, 11)]
    assert fitted(make, 50, 3.0, device).steps == 1
