"""Uniform numbers that depend on nothing but the row's seed, the round, the slot and what they are for."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zigzag.generation.inputs import whole
from zigzag.reference.errors import ArgumentError

MOST_STAGES = 16  # drafters that run models in one call; each has a stream of its own
PURPOSES = {"verify": 0, "draft": 1, **{f"draft {stage}": 1 + stage for stage in range(1, MOST_STAGES)}}
Words = NDArray[np.uint64]

# Philox4x64-10: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).
PHILOX_ROUNDS = 10
FACTORS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
STEPS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
HALF, LOW = np.uint64(32), np.uint64(0xFFFFFFFF)


def uniforms(seeds: Sequence[int], round_: int, count: int, purpose: str) -> NDArray[np.float32]:
    """[B, count] numbers in [0, 1), multiples of 2^-24 so that float32 holds them exactly and never rounds to 1.

    Philox with key = (seed, purpose) and the round in its counter: streams for drafting, coins and recovery never
    meet, and a slot that was drawn in one round is not drawn again in the next.
    """
    keys = np.array([[seed, PURPOSES[purpose]] for seed in seeds], dtype=np.uint64)  # a list would turn to float64
    rows = [np.random.Generator(np.random.Philox(key=key, counter=[0, round_, 0, 0])).random(count) for key in keys]
    return (np.floor(np.array(rows, dtype=np.float64).reshape(len(rows), count) * 2**24) / 2**24).astype(np.float32)


def uniform_block(seeds: Sequence[int], rounds: range, count: int, purpose: str) -> NDArray[np.float32]:
    """[rounds, B, count]: `uniforms` of every round, in one pass over arrays instead of a generator for each row.

    Four numbers come of one counter (quad + 1, round, 0, 0): the generator counts before it draws.
    """
    shape = (len(rounds), len(seeds), -(-count // 4))
    keys = (np.array(seeds, dtype=np.uint64)[:, None], np.array([PURPOSES[purpose]], dtype=np.uint64))
    quads = np.arange(1, shape[2] + 1, dtype=np.uint64)
    zeros = np.zeros(shape, dtype=np.uint64)
    counter = (zeros + quads, zeros + np.array(rounds, dtype=np.uint64)[:, None, None], zeros, zeros)
    words = np.stack(_philox(counter, keys), axis=-1)
    numbers = words.reshape(*shape[:2], 4 * shape[2])[..., :count] >> np.uint64(40)  # the 24 highest bits
    return numbers.astype(np.float32) * np.float32(2**-24)


def _philox(counter: tuple[Words, Words, Words, Words], keys: tuple[Words, Words]) -> tuple[Words, Words, Words, Words]:
    """The four words of each counter. Arrays of uint64 wrap around, which the generator means."""
    a, b, c, d = counter
    for n in range(PHILOX_ROUNDS):
        one, two = (key + np.array([n * step % 2**64], np.uint64) for key, step in zip(keys, STEPS, strict=True))
        (high_a, low_a), (high_c, low_c) = _product(a, FACTORS[0]), _product(c, FACTORS[1])
        a, b, c, d = high_c ^ b ^ one, low_c, high_a ^ d ^ two, low_a
    return a, b, c, d


def _product(words: Words, factor: int) -> tuple[Words, Words]:
    """(high, low) 64 bits of each product of 128."""
    top, bottom = np.uint64(factor >> 32), np.uint64(factor & 0xFFFFFFFF)
    high, low = words >> HALF, words & LOW
    cross = high * bottom + (low * bottom >> HALF)  # below 2^64: (2^32 - 1)^2 + 2^32 - 1
    middle = low * top + (cross & LOW)
    return high * top + (cross >> HALF) + (middle >> HALF), words * np.uint64(factor)


def row_seeds(seed: Any, rows: int) -> list[int]:
    """One seed a row: those given, or seed, seed + 1, ..."""
    try:
        several = isinstance(seed, Sequence | np.ndarray) and not isinstance(seed, str) and np.ndim(seed) == 1
        seeds = [whole("seed", s, 0) for s in seed] if several else [whole("seed", seed, 0) + b for b in range(rows)]
    except ArgumentError:
        seeds = []
    if len(seeds) != rows or max(seeds) >= 2**64:
        raise ArgumentError(f"seed must be one whole number, or one for each of the {rows} rows, 0 or more; got {seed}")
    return seeds
