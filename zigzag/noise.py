"""Uniform numbers that depend on nothing but the row's seed, the round, the slot and what they are for."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from zigzag.reference.errors import ArgumentError

PURPOSES = {"verify": 0, "draft": 1}


def uniforms(seeds: Sequence[int], round_: int, count: int, purpose: str) -> NDArray[np.float32]:
    """[B, count] numbers in [0, 1), multiples of 2^-24 so that float32 holds them exactly and never rounds to 1.

    Philox with key = (seed, purpose) and the round in its counter: streams for drafting, coins and recovery never
    meet, and a slot that was drawn in one round is not drawn again in the next.
    """
    rows = [
        np.random.Generator(np.random.Philox(key=[seed, PURPOSES[purpose]], counter=[0, round_, 0, 0])).random(count)
        for seed in seeds
    ]
    return (np.floor(np.array(rows, dtype=np.float64).reshape(len(rows), count) * 2**24) / 2**24).astype(np.float32)


def row_seeds(seed: int | Sequence[int], rows: int) -> list[int]:
    """One seed a row: those given, or seed, seed + 1, ..."""
    seeds = [seed + b for b in range(rows)] if isinstance(seed, int) else list(seed)
    if len(seeds) != rows or any(isinstance(s, bool) or not isinstance(s, int) or not 0 <= s < 2**64 for s in seeds):
        raise ArgumentError(f"seed must be one whole number, or one for each of the {rows} rows, 0 or more; got {seed}")
    return seeds
