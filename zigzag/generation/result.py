"""What `generate` gives back."""

from dataclasses import dataclass

from zigzag.generation.statistics import Statistics
from zigzag.running.runner import Runner


@dataclass
class Generation:
    """What `generate` returns.

    sequences: prompt and new tokens of each row, without padding; new_tokens: the new ones alone
    finish_reasons: "eos", "length" or "stopped" of each row; "cancelled" if the caller stopped it
    cache: of a single row, for `generate(..., cache=)`; None for batches
    logprobs: of each row's new tokens, if they were asked for
    """

    sequences: list[list[int]]
    new_tokens: list[list[int]]
    finish_reasons: list[str]
    statistics: Statistics
    cache: Runner | None = None
    logprobs: list[list[float]] | None = None
