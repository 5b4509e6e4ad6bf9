"""When each stage runs, and the learning rate of a step: functions of the step's number alone."""

import math
from dataclasses import dataclass

from zigzag.training.config import Stage, TrainingConfig


@dataclass(frozen=True)
class Schedule:
    """The steps of each stage, and what follows from them.

    The learning rate goes by the stages' shares, not by their steps: steps of long rows take longer and count for more.
    """

    config: TrainingConfig
    steps: tuple[int, ...]

    @property
    def total(self) -> int:
        return sum(self.steps)

    def stage_of(self, step: int) -> tuple[Stage, float]:
        """The stage of a step, and how much of the schedule, in [0, 1), is done before it."""
        shares = [stage.share for stage in self.config.stages]
        done = 0.0
        for stage, steps in zip(self.config.stages, self.steps, strict=True):
            if step < steps:
                return stage, (done + stage.share * step / steps) / sum(shares)
            step -= steps
            done += stage.share
        raise IndexError(step)

    def learning_rate(self, step: int) -> float:
        """Up linearly, then down along a cosine to `final` of the peak."""
        config = self.config
        _, progress = self.stage_of(step)
        if progress < config.warmup:
            return config.learning_rate * (progress + 1 / (2 * self.total)) / config.warmup
        turn = (progress - config.warmup) / (1 - config.warmup)
        falling = (1 + math.cos(math.pi * turn)) / 2
        return config.learning_rate * (config.final + (1 - config.final) * falling)


def warmed_cosine(step: int, steps: int, warmup: float, final: float = 0.1) -> float:
    """Share of the peak's learning rate: up linearly, then down along a cosine to `final`.

    warmup: share of the steps

    >>> [round(warmed_cosine(step, 10, 0.2), 2) for step in (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.55, 0.1]
    """
    begin = max(1, round(warmup * steps))
    if step < begin:
        return (step + 1) / begin
    turn = (step - begin) / max(1, steps - begin)
    return final + (1 - final) * (1 + math.cos(math.pi * turn)) / 2


def planned(config: TrainingConfig) -> Schedule:
    """With the steps that the configuration says."""
    return Schedule(config, tuple(stage.steps for stage in config.stages))


def fitted(config: TrainingConfig, seconds: float, seconds_a_step: list[float]) -> Schedule:
    """With as many steps of each stage as fit into its share of `seconds`, at least one."""
    shares = [stage.share for stage in config.stages]
    return Schedule(
        config,
        tuple(
            max(1, int(seconds * share / sum(shares) / one)) for share, one in zip(shares, seconds_a_step, strict=True)
        ),
    )
