"""The tensor-core attention kernel, run thread by thread on a CPU, against the reference; and which arrays it takes."""

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
    use_host,
)
from test_cupy_kernels import HOPPER, SPILLS, FakeArray, code_of, fake

from zigzag import reference
from zigzag.backends.cupy.raw import attention as cupy_attention_kernel
from zigzag.backends.cupy.raw import attention_mma as mma
from zigzag.backends.cupy.raw import kernels as cupy_kernels
from zigzag.backends.cupy.raw.attention_merge import NAME
from zigzag.conformance.tolerance import assert_no_worse

needs_compiler = pytest.mark.skipif(cuda_on_host.COMPILER is None, reason="there is no C++ compiler (g++)")

SIZES = 32, 64  # each other pair is another compilation
LENGTHS = (1, 15, 16, 17, 100, 250)


def use_mma(monkeypatch, multiprocessors: int = 8, seed: int = 0, element: str | None = None) -> None:
    use_host(monkeypatch, multiprocessors, seed, element)
    monkeypatch.setattr(mma, "chosen", lambda *arrays: True)


@needs_compiler
@pytest.mark.parametrize("explicit", [False, True], ids=["counted", "positions"])
@pytest.mark.parametrize("streaming", [False, True], ids=["full", "streaming"])
@settings(max_examples=15)
@given(data=st.data(), seed=st.integers(0, 2**16), multiprocessors=st.sampled_from([1, 8, 132]))
def test_parity(streaming: bool, explicit: bool, data, seed: int, multiprocessors: int) -> None:
    made = data.draw(decodes(streaming=streaming, explicit=explicit, sizes=SIZES, lengths=LENGTHS))
    spoil(made)
    with pytest.MonkeyPatch.context() as patch:
        use_mma(patch, multiprocessors, seed)
        check(made, "float16")


@needs_compiler
def test_largest_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    use_mma(monkeypatch)
    rng = np.random.default_rng(0)
    shapes = (1, 12, 2, 128), (1, 1, 200, 128), (1, 1, 200, 128)
    query, key, value = (rng.standard_normal(shape) for shape in shapes)
    check(Decode(query, in_a_buffer(key), in_a_buffer(value), {}), "float16")


@needs_compiler
@pytest.mark.parametrize("value_size", [32, 96])
def test_values_of_half_a_half(value_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of wider rows, whose other numbers are NaN."""
    use_mma(monkeypatch, 132)
    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal((1, heads, length, 96)) for heads, length in ((6, 2), (2, 90), (2, 90)))
    value[..., value_size:] = np.nan
    made = Decode(query, in_a_buffer(key), in_a_buffer(value)[..., :value_size], {})
    check(made, "float16")
    monkeypatch.setattr(mma, "SOURCE", mma.SOURCE.replace("IS_VALUE(16 * q + column)", "16 * q + column < 16"))
    with pytest.raises(AssertionError, match=r"error \S+ > "):
        check(made, "float16")


@needs_compiler
def test_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy has no such dtype: the kernel gets its bits."""
    use_mma(monkeypatch, element="bfloat16")
    rng = np.random.default_rng(0)
    shapes = (2, 6, 2, SIZES[0]), (2, 2, 90, SIZES[0]), (2, 2, 90, SIZES[1])
    bits = [to_bits(rng.standard_normal(shape)) for shape in shapes]
    output, lse = cupy_attention_kernel.attention(*bits, None, 1, None, None, None)
    exact, exact_lse = reference.attention(*(from_bits(b) for b in bits))
    assert_no_worse(from_bits(output), exact, from_bits(to_bits(exact)), dtype="bfloat16", factor=1.0)
    assert_no_worse(lse, exact_lse, exact_lse.astype("float32"), dtype="float32", terms=90)


@needs_compiler
def test_keys_behind_the_sinks_may_hold_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    use_mma(monkeypatch)
    made = only_sinks(*SIZES)
    check(made, "float16")
    monkeypatch.setattr(mma, "SOURCE", mma.SOURCE.replace("places.first = recent ?", "places.first = true ?"))
    with pytest.raises(AssertionError, match="error nan > "):
        check(made, "float16")


@needs_compiler
def test_nan_that_is_seen_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    use_mma(monkeypatch, 132)
    states = np.ones((1, 1, 130, 64), dtype="float16")
    key = states.copy()
    key[:, :, 77] = np.nan
    output, lse = cupy_attention_kernel.attention(states[:, :, :1], key, states, None, 1, None, None, None)
    assert np.isnan(output).all() and np.isnan(lse).all()


# The emulation and the comparison must notice what is wrong.

STEP = Decode(
    np.random.default_rng(0).standard_normal((1, 6, 3, SIZES[0])),
    *(np.random.default_rng(n).standard_normal((1, 1, 300, size)) for n, size in enumerate(SIZES, start=1)),
    {"sink": 4, "recent": 200},
)
SWAPPED = "multiply(result[8 * h + i], p0, p1, p2, p3, b1, b0);"


@needs_compiler
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("/ align * align - recent;\n#endif\n    }", "/ align * align - recent + 1;\n#endif\n    }"),
        ("multiply(result[8 * h + i], p0, p1, p2, p3, b0, b1);", SWAPPED),
        ("seen >> n & 1 ? v[n][h] : zero", "v[n][h]"),
        ("(first_part + split * ROWS + own) * VALUE_SIZE + column", "(first_part + own) * VALUE_SIZE + column"),
        ("    __syncthreads();\n    const long long tile", "    const long long tile"),
    ],
    ids=["window", "fragment", "unseen", "parts", "barrier"],
)
def test_wrong_kernel_is_noticed(right: str, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_mma(monkeypatch, 132, 1)
    made = Decode(STEP.query, STEP.key.copy(), STEP.value.copy(), {"sink": 4, "recent": 200})
    made.positions = {"query_positions": np.arange(297, 300), "key_positions": np.arange(300)}
    spoil(made)
    check_is_noticed(monkeypatch, mma, right, wrong, made, "float16")


def test_keys_are_split_over_blocks_that_fit() -> None:
    def splits(blocks: int, keys: int) -> int:
        return cupy_attention_kernel.splits_of(blocks, keys, 132, mma.WAVES, mma.LEAST_KEYS)

    assert [splits(8, keys) for keys in (255, 1024, 8192, 131_072)] == [1, 8, 33, 33]
    assert splits(64, 32_768) == 4 and splits(1, 10**6) == cupy_attention_kernel.MAX_SPLITS


@pytest.mark.parametrize("streaming", [0, 1])
@pytest.mark.parametrize("element", mma.DTYPES)
def test_compiles_for_hopper(element: str, streaming: int) -> None:
    """Sizes between them: the largest, the smallest, unequal ones, values of three quarters."""
    sizes = {("float16", 0): (64, 32), ("float16", 1): (32, 64), ("bfloat16", 1): (96, 96), ("bfloat16", 0): (128, 128)}
    for explicit in (0, 1):
        given = dict(zip(("SIZE", "VALUE_SIZE"), sizes[element, streaming], strict=True))
        code = code_of("attention_mma.cu", element, (streaming, explicit), given)
        assert compiled(code, SPILLS) == (True, "")


def test_compile_check_can_fail() -> None:
    code = code_of("attention_mma.cu", "float16", (0, 0))
    is_fine, log = compiled(code.replace("multiply(score[n], low.x", "multiply(score, low.x"), HOPPER)
    assert not is_fine and "kernel.cu(" in log


HALF = {size: fake(1, 2, 9, size, dtype="float16") for size in (16, 32, 64, 96, 128, 160, 192)}
BUFFER = fake(1, 2, 30, 72, dtype="float16")


def moved(by: int) -> FakeArray:
    """Keys that begin `by` bytes behind an address that is a multiple of 16."""
    whole = fake(2 * 9 * 64 + 16, dtype="float16")
    begin = (-whole.ctypes.data % 16 + by) // 2
    return whole[begin : begin + 2 * 9 * 64].reshape(1, 2, 9, 64)


@pytest.mark.parametrize(
    ("key", "value", "taken"),
    [
        (HALF[64], HALF[64], True),
        (HALF[32], HALF[128], True),
        (HALF[96], HALF[64], True),
        (HALF[16], HALF[64], False),
        (HALF[160], HALF[64], False),
        (HALF[96], HALF[96], True),
        (HALF[64], HALF[16], False),
        (HALF[64], HALF[192], False),
        (fake(1, 2, 9, 64), fake(1, 2, 9, 64), False),
        (BUFFER[:, :, 4:13, :64], HALF[64], True),  # a part of a larger cache, rows 144 bytes apart
        (BUFFER[:, :, 4:13, 4:68], HALF[64], False),
        (HALF[64], fake(1, 2, 30, 68, dtype="float16")[:, :, 4:13, :64], False),  # 136 bytes apart
        (moved(0), HALF[64], True),
        (HALF[64], moved(8), False),
    ],
)
def test_takes(key, value, taken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As NumPy aligns arrays: at 16 bytes."""
    monkeypatch.setenv(cupy_kernels.RAW, "1")
    monkeypatch.setattr(mma, "capability", lambda: 90)
    query = fake(1, 4, 1, key.shape[3], dtype=str(key.dtype))
    assert mma.chosen(query, key, value) is taken
    monkeypatch.setattr(mma, "capability", lambda: 75)
    assert not mma.chosen(query, key, value)


def test_launch_code_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []
    use_mma(monkeypatch, 132)
    monkeypatch.setattr(cupy_kernels, "launch", lambda source, name, *rest: launched.append((name, rest[2])))
    states = np.ones((1, 2, 4096, 64), dtype="float16")
    for is_chosen in (True, False):
        monkeypatch.setattr(mma, "chosen", lambda *arrays, answer=is_chosen: answer)
        cupy_attention_kernel.attention(states[:, :, :1], states, states, None, 1, None, None, None)
    merge = (NAME, (1, 2))
    assert launched == [(mma.NAME, (32, 1, 2)), merge, ("decode_attention", (64, 1, 2)), merge]
