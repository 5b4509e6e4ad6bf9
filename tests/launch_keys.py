"""Compares kept launches with Triton's own: `python tests/launch_keys.py`, in a process without the interpreter.

Their keys, for random calls: nothing is compiled, of each launch Triton's own binder says what it specialises on. And
what the compiled kernel is called with, for a few: compiled for a Hopper GPU, launched nowhere.
"""

import itertools
import json
import random
from collections import defaultdict

import torch
from hopper import Hopper
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.jit import compute_cache_key

from zigzag.backends import triton as ops
from zigzag.backends.triton import blocks, kept
from zigzag.backends.triton import launch as dependent_launches

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
CALLS, REPEATS = 60, 12
FREE = random.Random(1)  # where arrays lie and their dtypes: not the same when a call is made again


def placed(rng: random.Random, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Anywhere in memory, its rows longer than they need be now and then."""
    wide = (*shape[:-1], shape[-1] + rng.choice((0, 0, 1, 16)))
    size = torch.Size(wide).numel()
    start = FREE.choice((0, 0, 0, 1, 8))
    return torch.zeros(size + 8, dtype=dtype)[start : start + size].view(wide)[..., : shape[-1]]


def positions(rng: random.Random, batch: int, count: int) -> torch.Tensor:
    dtype = FREE.choice((torch.int32, torch.int64))
    return placed(rng, (batch, count) if rng.random() < 0.5 else (count,), dtype)


def attend(rng: random.Random) -> None:
    batch, share, groups, queries = rng.choice((1, 2)), rng.choice((1, 4)), rng.choice((1, 2)), rng.choice((1, 3))
    keys, size, dtype = rng.choice((17, 64, 8_192)), rng.choice((16, 40)), FREE.choice(DTYPES)
    window = rng.choice(({}, {"sink": 4, "recent": 16, "align": 4}, {"sink": 1, "recent": 16}))
    query = placed(rng, (batch, share * groups, queries, size), dtype)
    key, value = (placed(rng, (batch, groups, keys, size), dtype) for _ in range(2))
    where = {}
    if rng.random() < 0.4:
        where["query_positions"] = positions(rng, batch, queries)
        if rng.random() < 0.5:
            where["key_positions"] = positions(rng, batch, keys)
    if queries == 3 and len(where) != 1 and rng.random() < 0.5:
        where["parents"] = rng.choice(([-1, 0], [-1, -1], []))
    if rng.random() < 0.3 and "parents" not in where:
        key, value = (placed(rng, (5, groups, 16, size), dtype) for _ in range(2))
        where = {"block_table": placed(rng, (batch, 4), FREE.choice((torch.int32, torch.int64)))}
    ops.attention(query, key, value, scale=rng.choice((None, 1.0, 0.5)), **window, **where)


def mix(rng: random.Random) -> None:
    batch, queries, keys, dtype = rng.choice((1, 2)), rng.choice((1, 3)), rng.choice((64, 8_192)), FREE.choice(DTYPES)
    query = placed(rng, (batch, 4, queries, 16), dtype)
    full = [placed(rng, (batch, 1, keys, 16), dtype) for _ in range(2)]
    near = [placed(rng, (batch, 1, 32, 16), dtype) for _ in range(2)]
    where = {}
    if rng.random() < 0.5:
        where = {"query_positions": positions(rng, batch, queries), "streaming_positions": positions(rng, batch, 32)}
    groups = rng.choice(((True, False), (False, True)))
    ops.mixed_attention(query, *full, *near, full_groups=groups, sink=4, recent=16, **where)


def rag(rng: random.Random) -> None:
    rows, dtype, counting = rng.choice((1, 3)), FREE.choice(DTYPES), FREE.choice((torch.int32, torch.int64))
    tokens = rows * rng.choice((1, 4, 64))
    query, pages = placed(rng, (tokens, 4, 16), dtype), [placed(rng, (8, 2, 16, 16), dtype) for _ in range(2)]
    where = {
        "query_starts": placed(rng, (rows + 1,), counting),
        "lengths": placed(rng, (rows,), FREE.choice((torch.int32, torch.int64))),
        "block_table": placed(rng, (rows, 4), FREE.choice((torch.int32, torch.int64))),
    }
    window = rng.choice(({}, {"sink": 4, "recent": 16}))
    ops.ragged_attention(query, *pages, **where, **window, max_queries=rng.choice((None, tokens // rows)))


def judge(rng: random.Random) -> None:
    batch, drafts, vocabulary, dtype = (
        rng.choice((1, 2)),
        rng.choice((1, 4)),
        rng.choice((16, 5_001)),
        FREE.choice(DTYPES),
    )
    ids, uniforms = placed(rng, (batch, drafts), torch.int64), placed(rng, (batch, drafts + 1), torch.float32)
    rows, draft = (placed(rng, (batch, drafts + more, vocabulary), dtype) for more in (1, 0))
    rest = {"temperature": rng.choice((None, 0.0, 1.0, 0.5))}
    if rng.random() < 0.5:
        rest["num_draft_tokens"] = placed(rng, (batch,), FREE.choice((torch.int32, torch.int64)))
    drafted = rng.choice((draft, None))
    rng.choice(
        (
            lambda: ops.verify_greedy(ids, rows),
            lambda: ops.verify_residual(ids, drafted, rows, uniforms, **rest),
            lambda: ops.verify_block(ids, drafted, rows, uniforms, **rest),
            lambda: ops.verify_exact(ids, rows, uniforms, **rest),
            lambda: ops.verify_typical(ids, rows, uniforms, **rest),
            lambda: ops.verify_relaxed(ids, rows, **rest),
            lambda: ops.verify_top_k(ids, rows, k=2, **rest),
            lambda: ops.to_probs(rows, temperature=rest["temperature"] or 0.0),
        )
    )()


def confused(seen: list[tuple], ours: tuple[int, ...]) -> list[str]:
    """Kernels of which launches agree in these parts of our key, and differ in Triton's."""
    found = defaultdict(set)
    for *parts, theirs in seen:
        found[tuple(parts[part] for part in ours)].add(theirs)
    return sorted({key[0].kernel.__name__ for key, each in found.items() if len(each) > 1})


def calls_of_kernels() -> list[tuple]:
    """(what Triton called a compiled kernel with, what we did the second time) of the launches of three ops."""
    calls: list[tuple] = []
    CompiledKernel.run = property(lambda self: lambda *given: calls.append(given))
    CompiledKernel.launch_metadata = lambda self, *given: None
    kept._index = lambda device: 0
    states = torch.zeros(1, 2, 2_048, 16, dtype=torch.float16)
    query, rows, ids = states[:, :, -1:], torch.zeros(1, 2, 5_001), torch.zeros(1, 1, dtype=torch.int64)
    pairs = []
    for call in (
        lambda: ops.attention(query, states, states),
        lambda: ops.mixed_attention(
            query, *2 * (states[:, :1],), *2 * (states[:, 1:, -32:],), full_groups=(True, False), sink=4, recent=16
        ),
        lambda: ops.verify_greedy(ids, rows),
    ):
        call()
        first = calls.copy()
        calls.clear()
        call()
        pairs += zip(first, calls, strict=True)
        calls.clear()
    return pairs


def agree(theirs: tuple, ours: tuple) -> bool:
    """Arrays as places, no hooks; all else the same, in types too."""
    places = [isinstance(one, torch.Tensor) for one in theirs]
    plain = [type(one) is int if place else (type(one), one) for one, place in zip(ours, places, strict=False)]
    wanted = [True if place else (type(one), one) for one, place in zip(theirs, places, strict=True)]
    hooks = slice(6, 9)
    plain[hooks] = wanted[hooks] = []
    return len(theirs) == len(ours) and plain == wanted and ours[hooks] == (None, None, None)


def main() -> None:
    driver.set_active(Hopper())
    blocks.multiprocessors = lambda device: 132
    dependent_launches.is_able = lambda device: True
    pairs = calls_of_kernels()
    seen: list[tuple] = []
    loose: list[tuple] = []

    def record(self: kept.Launch, *arrays: torch.Tensor | None) -> None:
        options = self.options | {"debug": False}
        given = [arrays[0] if array is None else array for array in arrays]  # as `Launch` gives them to Triton
        _, specialization, rest = self.kernel.device_caches[0][-1](*given, *self.numbers, **options)
        theirs = compute_cache_key({}, specialization, rest)
        aligned = tuple(array is None or array.data_ptr() % kept.ALIGNMENT == 0 for array in arrays)
        seen.append((self, aligned, theirs))
        numbers = tuple((type(n), n) for n in self.numbers)
        loose.append((self, (self.kernel.__name__, numbers, tuple(sorted(map(str, options.items()))), aligned), theirs))

    kept.Launch.__call__ = record
    for seed, call in zip(range(CALLS), itertools.cycle((attend, attend, mix, rag, judge, judge)), strict=False):
        for _ in range(REPEATS):
            call(random.Random(seed))
    without_dtypes = defaultdict(set)
    for _, key, theirs in loose:
        without_dtypes[key].add(theirs)
    theirs, ours = pairs[0]
    report = {
        "called alike": [agree(*pair) for pair in pairs],
        "called otherwise": [
            agree(theirs, ours[:-1]),
            agree(theirs, (*ours[:-2], *ours[:-3:-1])),
            agree(*pairs[0][::-1]),
        ],
        "confused": confused(seen, (0, 1)),
        "without alignment": len(confused(seen, (0,))),
        "without dtypes": sum(len(each) > 1 for each in without_dtypes.values()),
        "kernels": sorted({launch.kernel.__name__ for launch, *_ in seen}),
        "launches": len(seen),
        "keys": len({(launch, aligned) for launch, aligned, _ in seen}),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
