"""Runs one kernel on small shapes and compares it with the reference; for compute-sanitizer.

    compute-sanitizer --tool memcheck --error-exitcode 9 python tests/gpu/small_shapes.py triton:attention

Names are in kernels.py. The exit code is 1 where the result is wrong or the kernel was not used.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[2]), str(HERE.parents[1]), str(HERE.parent)]  # the package, tests/ and tests/gpu/

import numpy as np  # noqa: E402
from kernels import NAMES  # noqa: E402

from zigzag import ops, reference  # noqa: E402
from zigzag.backends.cupy.raw import attention as cupy_attention_kernel  # noqa: E402
from zigzag.backends.cupy.raw import attention_many as cupy_attention_many  # noqa: E402
from zigzag.backends.cupy.raw import attention_mma as cupy_attention_mma  # noqa: E402
from zigzag.backends.cupy.raw import kernels as cupy_kernels  # noqa: E402
from zigzag.conformance.tolerance import EPSILON, assert_no_worse  # noqa: E402

VOCABULARY = 4_104  # of three chunks, the last not full; rows begin at multiples of 16 bytes
UNEVEN = 1_101  # they do not
Call = tuple[list[Any], dict[str, Any]]  # arrays and options


def attention_calls(rng: np.random.Generator) -> Iterator[Call]:
    """Decoding with its keys split, several queries, a whole prompt, a ring with an empty slot, and pages.

    In half precision again what CuPy has another kernel for.
    """
    window = {"sink": 8, "recent": 24}
    for queries, keys, size, options in (
        (1, 300, 64, {}), (1, 300, 96, window), (5, 70, 16, window), (16, 33, 128, {}), (40, 40, 32, window),
        (40, 40, 32, window | {"align": 8}),
    ):  # fmt: skip
        yield states(rng, queries, keys, size), options
    at = rng.permutation(np.arange(-1, 32))
    where = {"query_positions": np.array([31, 32]), "key_positions": at}
    yield states(rng, 2, at.size, 16), window | where
    for dtype, (queries, keys, size, options) in product(
        halves(), ((1, 300, 64, {}), (5, 70, 128, window), (3, 70, 96, {}), (2, at.size, 64, window | where))
    ):
        yield [part.astype(dtype) for part in states(rng, queries, keys, size)], options
    far = rng.permutation(np.arange(-1, 299))
    many = product(halves(), ({}, window), ({}, {"query_positions": far[-16:], "key_positions": far}))
    for dtype, around, where in many:  # 192 rows a group, in two blocks
        yield [part.astype(dtype) for part in states(rng, 16, far.size, 128, heads=24)], around | where
    yield [part.astype(np.float16) for part in states(rng, 16, 1000, 96, heads=10)], {}  # 80 rows
    yield [part.astype(np.float16) for part in states(rng, 10, 4300, 64)], {}  # many parts
    yield [part.astype(np.float16) for part in states(rng, 15, 300, 64, heads=20)], {}  # 150 rows a group
    query, key, value = states(rng, 3, 5 * 16, 32)
    pages = [part.reshape(2, 2, 5, 16, 32).swapaxes(1, 2).reshape(10, 2, 16, 32) for part in (key, value)]
    table = np.array([[3, 0, 9, 4], [1, 8, -1, -1]])
    yield [query, *pages], {"block_table": table, "query_positions": np.array([[61, 62, 63], [29, 30, 31]])}


def halves() -> list[Any]:
    """float16, and bfloat16 where NumPy, so CuPy, can have it."""
    try:
        import ml_dtypes
    except ImportError:
        return [np.float16]
    return [np.float16, ml_dtypes.bfloat16]


def mixed_calls(rng: np.random.Generator) -> Iterator[Call]:
    """Three heads of a KV head; the streaming cache holds the sinks and the last tokens."""
    query, key, value = states(rng, 2, 70, 32)
    kept = [*range(8), *range(38, 70)]
    arrays = [query, key[:, :1], value[:, :1], key[:, 1:, kept], value[:, 1:, kept]]
    yield [np.ascontiguousarray(a) for a in arrays], {"full_groups": (True, False), "sink": 8, "recent": 24}


def ragged_calls(rng: np.random.Generator) -> Iterator[Call]:
    """A row that decodes, none, a piece of a prompt; then three that decode. What lies in no row's pages is NaN."""
    for counts, most in (([1, 0, 70], {}), ([1, 1, 1], {"max_queries": 1})):
        pages = np.full((2, 20, 2, 16, 32), np.nan, dtype=np.float32)
        pages[:, 1:16] = rng.standard_normal((2, 15, 2, 16, 32), dtype=np.float32)
        rows = {
            "query_starts": np.cumsum([0, *counts]),
            "lengths": np.array([80, 5, 77]),
            "block_table": 1 + rng.permutation(15).reshape(3, 5),
        }
        query = rng.standard_normal((sum(counts), 6, 32), dtype=np.float32)
        yield [query, *pages], {**rows, "sink": 8, "recent": 24, **most}


def expert_calls(rng: np.random.Generator) -> Iterator[Call]:
    """One token, several, and as many as in a prompt; one slot without an expert."""
    normal = partial(rng.standard_normal, dtype=np.float32)
    for tokens in (1, 5, 40):
        ids, weights = rng.integers(0, 6, (tokens, 3)), rng.random((tokens, 3), dtype=np.float32)
        ids[-1, -1] = -1
        yield [normal((tokens, 48)), ids, weights, normal((6, 2 * 40, 48)) / 7, normal((6, 48, 40)) / 6], {}


def routing_calls(rng: np.random.Generator) -> Iterator[Call]:
    """Without groups, and the best two of four; scores far apart."""
    logits = rng.permuted(np.tile(np.linspace(-4, 4, 40, dtype=np.float32), (3, 1)), axis=1)
    for options in ({}, {"num_groups": 4, "top_groups": 2}):
        yield [logits, np.zeros(40, np.float32)], {"top_k": 6, **options}


def states(rng: np.random.Generator, queries: int, keys: int, size: int, heads: int = 6) -> list[np.ndarray]:
    shapes = (2, heads, queries, size), *2 * ((2, 2, keys, size),)
    return [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]


def score_calls(op: str, rng: np.random.Generator) -> Iterator[Call]:
    query, key, value = states(rng, 70, 70, 32)
    arrays = {"lost_mass": [query, key], "output_deviation": [query, key, value]}
    yield (
        arrays.get(op, [query, key, value, rng.standard_normal(query.shape, dtype=np.float32)]),
        {
            "sink": 8,
            "recent": 24,
        },
    )


def verify_calls(op: str, rng: np.random.Generator) -> Iterator[Call]:
    """From probabilities and from logits, with as many drafts as there are, fewer and none."""
    batch, drafts = 3, 3
    for vocabulary in (VOCABULARY, UNEVEN):
        logits = 3 * rng.standard_normal((batch, drafts + 1, vocabulary), dtype=np.float32)
        draft = probs(3 * rng.standard_normal((batch, drafts, vocabulary), dtype=np.float32))
        ids = np.where(rng.random((batch, drafts)) < 0.7, logits[:, :-1].argmax(-1), draft.argmax(-1))
        counts, uniforms = np.array([drafts, 1, 0]), rng.random((batch, drafts + 1), dtype=np.float32)
        options = {"verify_lenient": {"lenience": 0.5}, "verify_top_k": {"k": 3}}.get(op, {})
        if op == "verify_greedy":
            yield [ids, logits], {"num_draft_tokens": counts}
            continue
        for temperature, target in ((None, probs(logits)), (0.7, logits), (0.7, logits.astype(np.float16))):
            drawn = [draft, target] if op in ("verify_residual", "verify_lenient", "verify_block") else [target]
            coins = [] if op in ("verify_relaxed", "verify_top_k") else [uniforms]
            yield [ids, *drawn, *coins], {**options, "temperature": temperature, "num_draft_tokens": counts}


def sampling_calls(op: str, rng: np.random.Generator) -> Iterator[Call]:
    logits = 3 * rng.standard_normal((5, VOCABULARY), dtype=np.float32)
    if op == "to_probs":
        yield [logits], {"temperature": 0.7}
    else:
        yield [probs(logits), rng.random(5, dtype=np.float32)], {}


def probs(logits: np.ndarray) -> np.ndarray:
    return reference.to_probs(logits).astype(np.float32)


def calls(op: str) -> Iterator[Call]:
    rng = np.random.default_rng(1)
    own = {
        "attention": attention_calls,
        "mixed_attention": mixed_calls,
        "ragged_attention": ragged_calls,
        "apply_experts": expert_calls,
        "route_experts": routing_calls,
    }
    if op in own:
        return own[op](rng)
    if op.startswith("verify"):
        return verify_calls(op, rng)
    return sampling_calls(op, rng) if op in ("to_probs", "sample") else score_calls(op, rng)


def place(backend: str, device: str, array: Any) -> Any:
    """An array on the device; anything else as it is."""
    if not isinstance(array, np.ndarray):
        return array
    if backend == "cupy":
        import cupy

        return cupy.asarray(array)
    import torch

    return torch.from_numpy(array).to(device)


def fetch(result: Any) -> np.ndarray:
    return result.get() if hasattr(result, "get") else result.cpu().numpy()


def compare(results: Any, exact: Any, naive: Any) -> None:
    """Integers to the last; floats no worse than the reference in their dtype."""
    parts = (each if isinstance(each, tuple) else (each,) for each in (results, exact, naive))
    for result, true, plain in zip(*parts, strict=True):
        if true is None:
            continue
        if np.issubdtype(np.asarray(true).dtype, np.integer):
            np.testing.assert_array_equal(fetch(result), true)
        else:
            found = fetch(result)
            plain = plain.astype(found.dtype)  # the reference leaves half precision in float64
            assert_no_worse(found, true, plain, dtype=str(found.dtype), terms=true.shape[-1])


def run(name: str, device: str = "cuda") -> int:
    """All calls of the kernel `name`; returns how many."""
    backend, op = name.split(":")
    launched = raw_only() if backend == "cupy" else None
    number = 0
    for arrays, options in calls(op):
        if launched is not None and op == "attention" and arrays[0].shape[2] > cupy_attention_kernel.MAX_QUERIES:
            continue  # not for this kernel
        if backend != "cupy" and str(arrays[0].dtype) == "bfloat16":
            continue  # torch does not take it from NumPy, and has it in the parity suite
        number, before = number + 1, len(launched or ())
        placed = [place(backend, device, array) for array in arrays]
        on = {key: place(backend, device, value) for key, value in options.items()}
        results = getattr(ops, op)(*placed, **on, backend=backend)
        wide = [a.astype(np.float64) if str(a.dtype) in EPSILON else a for a in arrays]
        compare(results, *(getattr(reference, op)(*given, **options) for given in (wide, arrays)))
        if launched is not None and len(launched) == before:
            raise AssertionError(f"{name}, call {number}: array calls were used, not the raw kernel")
        if launched is not None and arrays[0].dtype.itemsize == 2:
            rows = arrays[0].shape[1] // arrays[1].shape[1] * arrays[0].shape[2]
            expected = cupy_attention_many if rows >= cupy_attention_many.FEWEST else cupy_attention_mma
            if expected.NAME not in launched[before:]:
                raise AssertionError(f"{name}, call {number}: {launched[before:]}, not {expected.NAME}")
    return number


def raw_only() -> list[str]:
    """Asks for CuPy's raw kernels, each array with memory of its own; the list grows with every launch."""
    import cupy

    cupy.cuda.set_allocator(None)
    os.environ[cupy_kernels.RAW] = "1"
    launched: list[str] = []
    launch = cupy_kernels.launch

    def counted(source: str, name: str, *rest: Any) -> None:
        launched.append(name)
        launch(source, name, *rest)

    cupy_kernels.launch = counted
    return launched


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernel", choices=NAMES)
    parser.add_argument("--device", default="cuda", help="cpu: interpreted, with TRITON_INTERPRET=1")
    given = parser.parse_args(arguments)
    print(f"{given.kernel}: {run(given.kernel, given.device)} calls agree with the reference")


if __name__ == "__main__":
    main()
