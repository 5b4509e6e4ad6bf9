"""The raw attention kernel, run thread by thread on a CPU, against the reference; its launch code runs with it."""

from dataclasses import dataclass, field
from importlib import import_module

import cuda_on_host
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zigzag import reference
from zigzag.backends.cupy.raw import attention as cupy_attention_kernel
from zigzag.backends.cupy.raw import attention_merge as cupy_attention_merge
from zigzag.backends.cupy.raw import kernels as cupy_kernels
from zigzag.conformance.strategies import windows
from zigzag.conformance.tolerance import assert_no_worse
from zigzag.reference.visibility import default_positions

cupy_attention = import_module("zigzag.backends.cupy.attention")  # the package has the op under this name

pytestmark = pytest.mark.skipif(cuda_on_host.COMPILER is None, reason="there is no C++ compiler (g++)")

SIZE, VALUE_SIZE = 8, 5  # each other size is another compilation


@dataclass
class Decode:
    """A decoding step: queries over a cache that is part of a larger buffer, whose rest holds NaN."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    window: dict
    positions: dict = field(default_factory=dict)
    scale: float | None = None


@st.composite
def decodes(
    draw, *, streaming: bool, explicit: bool, sizes=(SIZE, VALUE_SIZE), lengths=(1, 31, 32, 33, 100, 250)
) -> Decode:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batch, groups, share = (draw(st.integers(1, most)) for most in (2, 2, 5))
    keys, (size, value_size) = draw(st.sampled_from(lengths)), sizes
    queries = min(keys, draw(st.sampled_from([1, 1, 4, 16])))
    made = Decode(
        rng.standard_normal((batch, groups * share, queries, size)),
        in_a_buffer(rng.standard_normal((batch, groups, keys, size))),
        in_a_buffer(rng.standard_normal((batch, groups, keys, value_size))),
        draw(windows(draw(st.sampled_from([1, 4])))) if streaming else {},
        scale=draw(st.sampled_from([None, 1.5])),
    )
    if explicit:
        padding = rng.integers(0, keys + 1, batch)
        at = np.maximum(np.arange(keys) - padding[:, None], -1) if draw(st.booleans()) else rng.permutation(keys) - 1
        made.positions = {"query_positions": at[..., keys - queries :], "key_positions": at}
    return made


def in_a_buffer(states: np.ndarray) -> np.ndarray:
    batch, groups, keys, size = states.shape
    buffer = np.full((batch + 1, groups + 1, keys + 7, size), np.nan)
    buffer[:batch, :groups, 3 : keys + 3] = states
    return buffer[:batch, :groups, 3 : keys + 3]


def spoil(made: Decode) -> None:
    """NaN in keys and values that no query sees."""
    counted = default_positions(made.query.shape[2], made.key.shape[2], None)
    queries, keys = made.positions.values() or counted
    hidden = ~reference.visible(queries, keys, **made.window).any(axis=-2)
    for states in (made.key, made.value):
        states[np.broadcast_to(np.atleast_2d(hidden)[:, None], states.shape[:3])] = np.nan


def use_host(monkeypatch, multiprocessors: int, seed: int, element: str | None = None) -> None:
    def launch(source, name, dtype, *rest):
        cuda_on_host.launch(source, name, element or dtype, *rest, seed=seed)

    monkeypatch.setattr(cupy_kernels, "launch", launch)
    monkeypatch.setattr(cupy_attention_kernel, "_multiprocessors", lambda xp: multiprocessors)
    monkeypatch.setattr(np, "empty", lambda shape, dtype: np.full(shape, 77, dtype))  # nothing is right unwritten


def check(made: Decode, dtype: str) -> None:
    arrays = [_cast(states, dtype) for states in (made.query, made.key, made.value)]
    sizes = made.window.get("sink", 0), made.window.get("recent", 0)
    output, lse = cupy_attention_kernel.attention(
        *arrays,
        sizes if made.window else None,
        made.window.get("align", 1),
        made.scale,
        made.positions.get("query_positions"),
        made.positions.get("key_positions"),
    )
    assert output.dtype == dtype and lse.dtype == "float32"
    exact, exact_lse = reference.attention(*arrays, **made.window, **made.positions, scale=made.scale)
    terms = made.key.shape[2]
    assert_no_worse(output, exact, exact.astype(dtype), dtype=dtype, terms=terms)
    assert_no_worse(lse, exact_lse, exact_lse.astype("float32"), dtype="float32", terms=terms)


def _cast(states: np.ndarray, dtype: str) -> np.ndarray:
    """In another dtype, with the gaps between rows that it has."""
    if states.base is None or states.flags.c_contiguous:
        return states.astype(dtype)
    batch, groups, keys, size = states.shape
    return states.base.astype(dtype)[:batch, :groups, 3 : keys + 3, :size]


@pytest.mark.parametrize("explicit", [False, True], ids=["counted", "positions"])
@pytest.mark.parametrize("streaming", [False, True], ids=["full", "streaming"])
@settings(max_examples=15)
@given(data=st.data(), seed=st.integers(0, 2**16), multiprocessors=st.sampled_from([1, 8, 132]))
def test_parity(streaming: bool, explicit: bool, data, seed: int, multiprocessors: int) -> None:
    made = data.draw(decodes(streaming=streaming, explicit=explicit))
    spoil(made)
    with pytest.MonkeyPatch.context() as patch:
        use_host(patch, multiprocessors, seed)
        check(made, "float32")


@settings(max_examples=8)
@given(made=decodes(streaming=False, explicit=False))
def test_half_precision(made: Decode) -> None:
    with pytest.MonkeyPatch.context() as patch:
        use_host(patch, 8, 0)
        check(made, "float16")


def test_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy has no such dtype: the kernel gets its bits."""
    use_host(monkeypatch, 8, 0, element="bfloat16")
    rng = np.random.default_rng(0)
    shapes = (2, 6, 2, SIZE), (2, 2, 90, SIZE), (2, 2, 90, VALUE_SIZE)
    bits = [to_bits(rng.standard_normal(shape)) for shape in shapes]
    output, lse = cupy_attention_kernel.attention(*bits, None, 1, None, None, None)
    exact, exact_lse = reference.attention(*(from_bits(b) for b in bits))
    assert_no_worse(from_bits(output), exact, from_bits(to_bits(exact)), dtype="bfloat16", factor=1.0)
    assert_no_worse(lse, exact_lse, exact_lse.astype("float32"), dtype="float32", terms=90)


def to_bits(values: np.ndarray) -> np.ndarray:
    bits = values.astype("float32").view("uint32")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("uint16")


def from_bits(bits: np.ndarray) -> np.ndarray:
    return (bits.astype("uint32") << 16).view("float32")


def test_an_empty_slot_may_hold_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    use_host(monkeypatch, 8, 0)
    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal((1, 2, keys, SIZE)).astype("float32") for keys in (3, 70, 70))
    at = np.where(np.arange(70) % 3 == 0, -1, np.arange(70))
    key[:, :, at < 0] = value[:, :, at < 0] = np.nan
    where = {"query_positions": np.array([69, 68, -1]), "key_positions": at}
    output, lse = cupy_attention_kernel.attention(query, key, value[..., :VALUE_SIZE], None, 1, None, *where.values())
    clean = [np.nan_to_num(states) for states in (key, value[..., :VALUE_SIZE])]
    exact, exact_lse = reference.attention(query, *clean, **where)
    np.testing.assert_allclose(output, exact, atol=1e-6)
    np.testing.assert_allclose(lse, exact_lse, atol=1e-6)


def only_sinks(size: int, value_size: int) -> Decode:
    """Queries that see no keys but the sinks; NaN in all others."""
    rng = np.random.default_rng(0)
    shapes = (1, 2, 4, size), (1, 1, 40, size), (1, 1, 40, value_size)
    made = Decode(*(rng.standard_normal(shape) for shape in shapes), {"sink": 4, "recent": 0})
    spoil(made)
    return made


def test_keys_behind_the_sinks_may_hold_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    use_host(monkeypatch, 8, 0)
    check(only_sinks(SIZE, VALUE_SIZE), "float32")


def test_keys_are_split_and_parts_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    """In two launches, the second with a warp for each row of 2 x 2 KV heads, here 6, or with a block."""
    launched = []
    use_host(monkeypatch, 132, 0)
    monkeypatch.setattr(cupy_kernels, "launch", lambda source, name, *rest: launched.append((name, rest[2])))
    states = np.ones((2, 2, 2000, SIZE), dtype="float32")
    query = np.ones((2, 6, 2, SIZE), dtype="float32")
    for keys in (200, 60, 2000):
        key = states[:, :, :keys]
        cupy_attention_kernel.attention(query, key, key[..., :VALUE_SIZE], None, 1, None, None, None)
    split = [("decode_attention", (3, 1, 4)), ("merge_parts", (2, 4))]
    many = [("decode_attention", (31, 1, 4)), ("merge_parts", (6, 4))]
    assert launched == [*split, ("decode_attention", (1, 1, 4)), *many]


def test_front_goes_to_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy_attention_kernel, "chosen", lambda *arrays: True)
    monkeypatch.setattr(cupy_attention_kernel, "attention", lambda *arguments: arguments[3:])
    states = np.ones((1, 1, 4, SIZE))
    assert cupy_attention.attention(states, states, states, sink=2) == ((2, 0), 1, None, None, None)
    output, _ = cupy_attention.attention(states, states, states, parents=[-1])  # trees are not the kernel's
    assert output.shape == states.shape


# The emulation and the comparison must notice what is wrong.

STEP = Decode(
    *(np.random.default_rng(n).standard_normal((1, 2, keys, SIZE)) for n, keys in enumerate((2, 400, 400))),
    {"sink": 4, "recent": 200},
)
STEP.value = STEP.value[..., :VALUE_SIZE].copy()
MANY_PARTS = Decode(
    *(
        np.random.default_rng(n).standard_normal((1, heads, keys, SIZE))
        for n, (heads, keys) in enumerate(((6, 2), (2, 2000), (2, 2000)))
    ),
    {},
)
MANY_PARTS.value = MANY_PARTS.value[..., :VALUE_SIZE].copy()


def check_is_noticed(monkeypatch: pytest.MonkeyPatch, family, right: str, wrong: str, made: Decode, dtype: str) -> None:
    """What is computed is right, and with another text wrong: by a number, not because nothing could be compiled."""
    check(made, dtype)
    assert right in family.SOURCE
    monkeypatch.setattr(family, "SOURCE", family.SOURCE.replace(right, wrong))
    with pytest.raises(AssertionError, match=r"error \S+ > |infini"):
        check(made, dtype)


KERNEL, MERGE = (cupy_attention_kernel, STEP, 8), (cupy_attention_merge, MANY_PARTS, 132)


@pytest.mark.parametrize(
    ("of", "right", "wrong"),
    [
        pytest.param(KERNEL, "- recent / align;", "- recent / align - 1;", id="window"),
        pytest.param(KERNEL, "sinks = min(min(sink, end), first);", "sinks = 0;", id="sinks"),
        pytest.param(KERNEL, "* splits + split) * ROWS;", "* splits) * ROWS;", id="parts"),
        pytest.param(KERNEL, "total[m] * shrink + warp_sum(weight)", "total[m] + warp_sum(weight)", id="sum"),
        pytest.param(KERNEL, "__syncthreads();  // also: the last step's values have been used", "", id="barrier"),
        pytest.param(KERNEL, "__syncthreads();\n        const int place", "const int place", id="another barrier"),
        pytest.param(MERGE, "s * ROWS) * VALUE_SIZE", "s) * VALUE_SIZE", id="parts read"),
        pytest.param(MERGE, "(sharer + m * SHARERS) % 32", "m * SHARERS / 2 % 32", id="weights"),
        pytest.param(MERGE, "row % share) * num_queries", "row / num_queries) * num_queries", id="line"),
        pytest.param(MERGE, "row < share * num_queries", "row + 1 < share * num_queries", id="rows"),
        pytest.param(MERGE, "    __syncthreads();\n", "", id="barrier of the merge"),
    ],
)
def test_wrong_kernel_is_noticed(of: tuple, right: str, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family, made, multiprocessors = of
    use_host(monkeypatch, multiprocessors, 1)
    check_is_noticed(monkeypatch, family, right, wrong, made, "float32")


@pytest.mark.parametrize("multiprocessors", [8, 40, 132])
def test_splits_of_several_warps(multiprocessors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """2, 10 and 33 parts of each of two tiles."""
    use_host(monkeypatch, multiprocessors, 3)
    rng = np.random.default_rng(5)
    query, key, value = (rng.standard_normal((1, heads, n, SIZE)) for heads, n in ((6, 10), (2, 4200), (2, 4200)))
    check(Decode(query, key, value[..., :VALUE_SIZE].copy(), {}), "float32")


def test_deadlock_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    use_host(monkeypatch, 8, 0)
    wrong = "if (thread) __syncthreads(); float result[ROWS];"
    source = cupy_attention_kernel.SOURCE.replace("float result[ROWS];", wrong)
    monkeypatch.setattr(cupy_attention_kernel, "SOURCE", source)
    with pytest.raises(cuda_on_host.DeadlockError):
        check(STEP, "float32")
