"""The tensor-core attention kernel for many rows, run thread by thread on a CPU, against the reference; its cut."""

import cuda_on_host
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nvrtc import compiled
from test_cupy_attention_kernel import (
    Decode,
    check,
    check_is_noticed,
    decodes,
    from_bits,
    in_a_buffer,
    only_sinks,
    spoil,
    to_bits,
)
from test_cupy_attention_mma import use_mma
from test_cupy_kernels import SPILLS, code_of

from zigzag import reference
from zigzag.backends.cupy.raw import attention as cupy_attention_kernel
from zigzag.backends.cupy.raw import attention_many as many
from zigzag.backends.cupy.raw import attention_mma as mma
from zigzag.backends.cupy.raw import kernels as cupy_kernels
from zigzag.backends.cupy.raw.attention_merge import NAME as MERGE
from zigzag.conformance.tolerance import assert_no_worse

needs_compiler = pytest.mark.skipif(cuda_on_host.COMPILER is None, reason="there is no C++ compiler (g++)")

SIZES = 32, 64  # each other pair is another compilation
LENGTHS = (1, 31, 32, 33, 100, 250)
LEAST_SHARED = 99 * 1024  # bytes that a block can have on each card of compute capability 8.0 or newer


def of_rows(
    share: int, queries: int, keys: int, window: dict, explicit: bool, sizes=SIZES, scale=None, batch: int = 1
) -> Decode:
    """`share` heads of each of two KV heads; NaN in keys that nobody sees."""
    rng = np.random.default_rng(share)
    query = rng.standard_normal((batch, 2 * share, queries, sizes[0]))
    key, value = (in_a_buffer(rng.standard_normal((batch, 2, keys, size))) for size in sizes)
    made = Decode(query, key, value, window, scale=scale)
    if explicit:
        at = rng.permuted(np.broadcast_to(np.arange(keys), (batch, keys)), axis=1)
        at[:, ::3] = -1  # empty slots
        last = np.arange(keys, keys - 100 * batch, -100)[:, None]
        made.positions = {"query_positions": last - np.arange(queries, 0, -1), "key_positions": at}
    spoil(made)
    return made


@needs_compiler
@pytest.mark.parametrize("explicit", [False, True], ids=["counted", "positions"])
@pytest.mark.parametrize("streaming", [False, True], ids=["full", "streaming"])
@settings(max_examples=8)
@given(data=st.data(), seed=st.integers(0, 2**16), multiprocessors=st.sampled_from([1, 132]))
def test_parity(streaming: bool, explicit: bool, data, seed: int, multiprocessors: int) -> None:
    """With few rows, too, for which it is not chosen otherwise: blocks that are nearly empty."""
    made = data.draw(decodes(streaming=streaming, explicit=explicit, sizes=SIZES, lengths=LENGTHS))
    spoil(made)
    with pytest.MonkeyPatch.context() as patch:
        use_mma(patch, multiprocessors, seed)
        patch.setattr(many, "FEWEST", 1)
        check(made, "float16")


ROWS = [(5, 13), (6, 16), (97, 1), (8, 16), (43, 3), (12, 16), (14, 15)]  # 65, 96, 97, 128, 129, 192, 210


@needs_compiler
@pytest.mark.parametrize("multiprocessors", [1, 132], ids=["whole", "split"])
@pytest.mark.parametrize(("share", "queries"), ROWS)
def test_rows(share: int, queries: int, multiprocessors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full and partial blocks, one to three of a group."""
    use_mma(monkeypatch, multiprocessors, 2)
    check(of_rows(share, queries, 300, {}, False), "float16")


@needs_compiler
@pytest.mark.parametrize("explicit", [False, True], ids=["counted", "positions"])
@pytest.mark.parametrize("window", [{}, {"sink": 4, "recent": 40}], ids=["full", "streaming"])
def test_two_blocks_of_rows(window: dict[str, int], explicit: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """192 rows, several splits, more tiles of keys than stages."""
    use_mma(monkeypatch, 20, 3)
    made = of_rows(12, 16, 700, window, explicit)
    check_is_noticed(monkeypatch, many, "warp_row = thread / 32 * 8 * EIGHTS", "warp_row = 0", made, "float16")


@needs_compiler
@pytest.mark.parametrize("sizes", [(128, 128), (96, 32), (64, 96)], ids=str)
def test_sizes(sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    use_mma(monkeypatch, 132)
    check(of_rows(12, 6, 290, {}, False, sizes), "float16")


@needs_compiler
def test_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy has no such dtype: the kernel gets its bits."""
    use_mma(monkeypatch, 1, element="bfloat16")
    rng = np.random.default_rng(0)
    shapes = (1, 12, 16, SIZES[0]), (1, 2, 90, SIZES[0]), (1, 2, 90, SIZES[1])
    bits = [to_bits(rng.standard_normal(shape)) for shape in shapes]
    output, lse = cupy_attention_kernel.attention(*bits, None, 1, None, None, None)
    exact, exact_lse = reference.attention(*(from_bits(b) for b in bits))
    assert_no_worse(from_bits(output), exact, from_bits(to_bits(exact)), dtype="bfloat16", factor=1.0)
    assert_no_worse(lse, exact_lse, exact_lse.astype("float32"), dtype="float32", terms=90)


@needs_compiler
def test_keys_behind_the_sinks_may_hold_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    use_mma(monkeypatch)
    monkeypatch.setattr(many, "FEWEST", 1)
    made = only_sinks(*SIZES)
    check(made, "float16")
    monkeypatch.setattr(many, "SOURCE", many.SOURCE.replace("places.first = recent ?", "places.first = true ?"))
    with pytest.raises(AssertionError, match="error nan > "):
        check(made, "float16")


@needs_compiler
@pytest.mark.parametrize("where", [5, 77, 129])
def test_nan_that_is_seen_is_told(where: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last key, too, which is in a tile that not all queries see."""
    use_mma(monkeypatch, 132)
    query, states = np.ones((1, 12, 8, 64), dtype="float16"), np.ones((1, 1, 130, 64), dtype="float16")
    key = states.copy()
    key[:, :, where] = np.nan
    output, lse = cupy_attention_kernel.attention(query, key, states, None, 1, None, None, None)
    sees = np.broadcast_to(np.arange(122, 130) >= where, lse.shape)
    assert np.isnan(lse[sees]).all() and np.isnan(output[sees]).all()
    assert not np.isnan(lse[~sees]).any()


@needs_compiler
def test_rows_that_see_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A query without a position beside others: zeros, and an lse of -inf."""
    for multiprocessors in (1, 132):
        use_mma(monkeypatch, multiprocessors)
        made = of_rows(12, 8, 300, {}, True)
        made.positions["query_positions"] = np.where(np.arange(8) == 3, -1, made.positions["query_positions"])
        spoil(made)
        arrays = [states.astype("float16") for states in (made.query, made.key, made.value)]
        output, lse = cupy_attention_kernel.attention(*arrays, None, 1, None, *made.positions.values())
        assert (output[:, :, 3] == 0).all() and np.isneginf(lse[:, :, 3]).all()
        assert np.isfinite(np.delete(output, 3, axis=2)).all() and np.isfinite(np.delete(lse, 3, axis=2)).all()


# The emulation and the comparison must notice what is wrong.

PLAIN, POSITIONS = {}, {"explicit": True}
SLIDING = {"window": {"sink": 4, "recent": 200}}
GROWING = {"scale": 1.5}  # scores far apart: the highest one grows by more than the slack


@needs_compiler
@pytest.mark.parametrize(
    ("right", "wrong", "options"),
    [
        pytest.param("align - recent;\n#endif\n    }", "align - recent + 1;\n#endif\n    }", SLIDING, id="window"),
        pytest.param("(j < sink ||", "(", SLIDING, id="sinks"),
        pytest.param("weights[e][0], weights[e][1]", "weights[e][1], weights[e][0]", PLAIN, id="fragment"),
        pytest.param("transposed(pack(one[0], one[1]))", "pack(one[0], one[1])", PLAIN, id="not turned"),
        pytest.param("> first_query + 1", "> last_query + 1", PLAIN, id="tile that not all see"),
        pytest.param("a[0] &= low, a[1] &= low, a[2] &= high, a[3] &= high;", "", POSITIONS, id="unseen"),
        pytest.param("bits & 512", "bits & 256", POSITIONS, id="unseen key"),
        pytest.param("j >= 0 && ", "", POSITIONS, id="empty slot"),
        pytest.param("index < places.count ? place : -1", "place", POSITIONS, id="behind the last key"),
        pytest.param("query_at[batch * query_at_batch + ", "query_at[", POSITIONS, id="queries' positions"),
        pytest.param("key_at + batch * key_at_batch", "key_at", POSITIONS, id="keys' positions"),
        pytest.param("* splits + split) * ROWS", "* splits) * ROWS", PLAIN, id="parts"),
        pytest.param("__syncthreads();  // all", "// all", PLAIN, id="barrier"),
        pytest.param("wait_for_all_but<STAGES - 2>", "wait_for_all_but<STAGES - 1>", PLAIN, id="wait"),
        pytest.param("stage ? stage - 1 : STAGES - 1", "stage", PLAIN, id="stage in use"),
        pytest.param("        }\n        commit();", "        commit();\n        }", PLAIN, id="no empty group"),
        pytest.param("total[e][c] *= shrink;", "", GROWING, id="total"),
        pytest.param("n % 2 * 2 + c] *= shrink", "n % 2 * 2 + c] *= 1", GROWING, id="result"),
        pytest.param("SLACK 8.0f", "SLACK 1e30f", GROWING, id="slack"),
        pytest.param("__any_sync(ALL, is_beyond)", "is_beyond && lane", GROWING, id="vote"),
    ],
)
def test_wrong_kernel_is_noticed(right: str, wrong: str, options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """80 rows of two sequences: one block, partly filled."""
    use_mma(monkeypatch, 4, 1)
    given = {"window": {}, "explicit": False} | options
    check_is_noticed(monkeypatch, many, right, wrong, of_rows(5, 16, 490, **given, batch=2), "float16")


@needs_compiler
@pytest.mark.parametrize(("size", "wrong"), [(128, "eight"), (64, "eight"), (32, "eight"), (96, "(eight ^ row % 4)")])
def test_bank_conflicts_are_noticed(size: int, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are none: every launch on the host says so."""
    use_mma(monkeypatch, 1)
    made, right = of_rows(5, 13, 40, {}, False, (size, size)), "(eight ^ (EIGHTS % 8 ? row / 2 % 4 : row % 8))"
    check(made, "float16")
    assert right in many.SOURCE
    monkeypatch.setattr(many, "SOURCE", many.SOURCE.replace(right, wrong))
    with pytest.raises(cuda_on_host.BankConflictError):
        check(made, "float16")


# How it is cut.


def test_rows_of_a_block() -> None:
    """No more than fit into the registers; as few blocks as can be, no block much emptier than another."""
    assert [many.rows_of(rows) for rows in (1, 65, 96, 97, 128, 129, 192, 193, 256, 288)] == [
        *(32, 96, 96, 64, 64, 96, 96, 96, 96, 96)
    ]


def test_shared_memory_that_every_card_has() -> None:
    """With what the kernel's text names: two numbers a row, eight bytes each."""
    largest = cupy_attention_kernel.MAX_SIZE
    shared = many.constants_of(largest, largest, explicit=True)["SHARED"]
    assert shared == many.STAGES * many.KEYS * (4 * largest + 8)
    assert shared + 16 * many.MOST_ROWS <= LEAST_SHARED
    assert many.WAVES * (shared + 16 * many.MOST_ROWS + 1024) <= 228 * 1024  # of a multiprocessor of Hopper


@pytest.mark.parametrize("rows", [32, 64, 96])
@pytest.mark.parametrize("switches", [(0, 0), (1, 0), (0, 1), (1, 1)], ids=str)
def test_compiles_for_hopper(switches: tuple[int, int], rows: int) -> None:
    """Without spilling registers, in either dtype: the largest sizes, and each other one."""
    sizes = {32: (32, 96), 64: (64, 32), 96: (128, 128)}[rows]
    given = {"ROWS": rows} | dict(zip(("SIZE", "VALUE_SIZE"), sizes, strict=True))
    for element in mma.DTYPES if rows == 96 else mma.DTYPES[:1]:
        assert compiled(code_of("attention_many.cu", element, switches, given), SPILLS) == (True, "")


def test_compile_check_can_fail() -> None:
    code = code_of("attention_many.cu", "float16", (0, 0))
    assert (
        "spilled"
        in compiled(
            code.replace("#define KEYS 32", "#define KEYS 64").replace(
                "static_assert(SHARED", "static_assert(true || SHARED"
            ),
            SPILLS,
        )[1]
    )
    is_fine, log = compiled(code.replace("STAGES * STAGE,", "STAGE,"), SPILLS)
    assert not is_fine and "as attention_many.py counts" in log


@pytest.mark.parametrize(
    ("queries", "name", "rows", "grid"),
    [
        (4, mma.NAME, 16, (22, 4, 3)),
        (5, many.NAME, 96, (32, 1, 3)),
        (8, many.NAME, 64, (32, 2, 3)),
        (12, many.NAME, 96, (32, 2, 3)),
    ],
)
def test_launch_code_chooses(queries: int, name: str, rows: int, grid: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 rows of a group, 80, 128 and 192."""
    launched = []
    use_mma(monkeypatch, 132)
    monkeypatch.setattr(cupy_kernels, "launch", lambda *given: launched.append((given[1], given[3]["ROWS"], given[4])))
    states = np.ones((1, 3, 4096, 64), dtype="float16")
    query = np.ones((1, 48, queries, 64), dtype="float16")
    cupy_attention_kernel.attention(query, states, states, None, 1, None, None, None)
    assert launched == [(name, rows, grid), (MERGE, rows, (16 * queries, 3))]


def test_shared_memory_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    queued = []
    monkeypatch.setattr(cupy_kernels, "_compiled", lambda *given: given[1])
    monkeypatch.setattr(cupy_kernels, "queue", lambda *given: queued.append(given))
    cupy_kernels.launch("", "one", "float16", {"SHARED": 7, "KEYS": 32}, (1,), 128, ())
    cupy_kernels.launch("", "other", "float16", {"KEYS": 32}, (1,), 128, ())
    assert queued == [("one", (1,), 128, (), 7), ("other", (1,), 128, (), 0)]
