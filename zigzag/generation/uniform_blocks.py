"""Uniform numbers on the device before they are asked for: one upload for many rounds, none inside a round."""

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from zigzag.generation.noise import uniform_block
from zigzag.running.transfers import to_device

ROUNDS = 64  # in a block


class UniformBlocks:
    """`noise.uniforms` of one purpose, on `device`: the same numbers, drawn and uploaded a block at a time.

    A block holds the coming rounds for the rows that were there when it was drawn. It is drawn again when a round, a
    row or a slot comes that it does not hold. Nothing here waits for the device.

    slots: most that a round will likely ask for; rounds: in a block
    """

    def __init__(self, purpose: str, device: torch.device | str, *, slots: int = 1, rounds: int = ROUNDS) -> None:
        self.purpose, self.device, self.slots, self.rounds = purpose, torch.device(device), slots, rounds
        self._first = 0
        self._held: list[int] = []  # seeds of the block's rows
        self._asked: list[int] = []  # seeds of the last call
        self._index: Tensor | None = None  # their places in the block; None: all, in order
        self._block = torch.empty(0)  # [rounds, rows, slots]

    def __call__(self, seeds: Sequence[int], round_: int, count: int) -> Tensor:
        """[B, count] numbers of this round, as `uniforms(seeds, round_, count, purpose)`."""
        seeds = list(seeds)
        if seeds != self._asked:
            self._choose(seeds)
        if not self._held or count > self.slots or not self._first <= round_ < self._first + self.rounds:
            self._draw(seeds, round_, count)
        now = self._block[round_ - self._first]
        return (now if self._index is None else now.index_select(0, self._index))[:, :count]

    def _choose(self, seeds: list[int]) -> None:
        """Find the rows in the block; rows with one seed have the same numbers, so any of them will do."""
        places = {seed: place for place, seed in enumerate(self._held)}
        self._asked, self._index = seeds, None
        if any(seed not in places for seed in seeds):
            self._held = []  # to be drawn for these rows
        elif seeds != self._held:
            self._index = to_device(torch.tensor([places[seed] for seed in seeds], dtype=torch.int64), self.device)

    def _draw(self, seeds: list[int], round_: int, count: int) -> None:
        self.slots = max(self.slots, count)
        self._first, self._held, self._index = round_, seeds, None
        drawn: NDArray[Any] = uniform_block(seeds, range(round_, round_ + self.rounds), self.slots, self.purpose)
        self._block = to_device(torch.from_numpy(drawn), self.device)
