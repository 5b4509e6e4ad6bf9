"""The raw CUDA kernels: each compiles for Hopper without a warning, for each dtype; none is chosen without a record."""

import re
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import cuda_on_host
import numpy as np
import pytest
from cuda_on_host import kernels_in
from nvrtc import compiled, ptx_of
from ptx import access_before_waiting

from zigzag.backends.cupy.raw import attention as cupy_attention_kernel
from zigzag.backends.cupy.raw import attention_merge as cupy_attention_merge
from zigzag.backends.cupy.raw import attention_mma as cupy_attention_mma
from zigzag.backends.cupy.raw import kernels as cupy_kernels
from zigzag.backends.cupy.raw import verification as cupy_verification_kernel

BACKENDS = Path(__file__).resolve().parents[1] / "backends"
HOPPER = (*cupy_kernels.OPTIONS, "--gpu-architecture=sm_90")
SWITCHES = {cupy_attention_kernel: ("STREAMING", "EXPLICIT"), cupy_verification_kernel: ("LOGITS", "DRAFT")}
KERNELS = {
    cupy_attention_kernel: ["decode_attention"],
    cupy_verification_kernel: [
        "best_of_chunks",
        "mass_of_chunks",
        "decide_greedy",
        "judge_residual",
        "recover",
        "settle_one_hot",
    ],
}


def constants(family, **switches: int) -> dict[str, int]:
    sizes = {cupy_attention_kernel: ["ROWS", "KEYS"], cupy_verification_kernel: ["EIGHTS"]}[family]
    chosen = {name: getattr(family, name) for name in ["THREADS", *sizes]} | switches
    return chosen | ({"SIZE": 32, "VALUE_SIZE": 32} if family is cupy_attention_kernel else {})


# All switches with float32; with the other dtypes each switch on and off.
VARIANTS = [("float32", switches) for switches in product([0, 1], repeat=2)]
VARIANTS += [(element, switches) for element in cupy_kernels.ELEMENTS for switches in [(0, 1), (1, 0)]][2:]


@pytest.mark.parametrize(("element", "switches"), VARIANTS, ids=str)
@pytest.mark.parametrize("family", KERNELS, ids=lambda family: family.__name__.rpartition(".")[2])
def test_compiles_for_hopper(family, element: str, switches: tuple[int, int]) -> None:
    made = constants(family, **dict(zip(SWITCHES[family], switches, strict=True)))
    assert compiled(cupy_kernels.code_of(family.SOURCE, element, made), HOPPER) == (True, "")


def test_largest_heads_fit() -> None:
    """Shared memory is limited, and the compiler counts it."""
    largest = {"SIZE": cupy_attention_kernel.MAX_SIZE, "VALUE_SIZE": cupy_attention_kernel.MAX_SIZE}
    made = {**constants(cupy_attention_kernel, STREAMING=1, EXPLICIT=0), **largest}
    assert compiled(cupy_kernels.code_of(cupy_attention_kernel.SOURCE, "bfloat16", made), HOPPER) == (True, "")
    made["SIZE"] *= 4
    is_fine, log = compiled(cupy_kernels.code_of(cupy_attention_kernel.SOURCE, "bfloat16", made), HOPPER)
    assert not is_fine and "shared" in log


@pytest.mark.parametrize(
    ("element", "draft"), [("bfloat16", 0), ("float16", 1), ("float32", 1), ("float16", 2), ("bfloat16", 2)]
)
@pytest.mark.parametrize("logits", [0, 1])
def test_no_registers_are_spilled(element: str, draft: int, logits: int) -> None:
    """2: draft rows of float32 beside half precision."""
    made = constants(cupy_verification_kernel, LOGITS=logits, DRAFT=draft)
    code = cupy_kernels.code_of(cupy_verification_kernel.SOURCE, element, made)
    options = (*HOPPER, "--ptxas-options=--warn-on-spills")
    assert compiled(code, options) == (True, "")
    if draft and logits:
        assert "spilled" in compiled(code.replace("(THREADS, AT_ONCE)", "(THREADS, 8)"), options)[1]


@pytest.mark.parametrize("family", KERNELS)
def test_every_kernel_is_compiled(family) -> None:
    assert kernels_in(family.SOURCE) == KERNELS[family]
    assert {element for element, _ in VARIANTS} == set(cupy_kernels.ELEMENTS)


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("fmaxf(highest[m], warp_max(score))", "fmaxf(highest, warp_max(score))", "error"),
        ("__syncthreads();", "__syncthread();", "undefined"),
        ("const int split = blockIdx.x", "int unused; const int split = blockIdx.x", "never referenced"),
    ],
    ids=["type", "name", "warning"],
)
def test_compile_check_can_fail(right: str, wrong: str, said: str) -> None:
    assert right in cupy_attention_kernel.SOURCE
    source = cupy_attention_kernel.SOURCE.replace(right, wrong)
    made = constants(cupy_attention_kernel, STREAMING=0, EXPLICIT=0)
    is_fine, log = compiled(cupy_kernels.code_of(source, "float32", made), HOPPER)
    assert (is_fine, log) != (True, "") and said in log and "kernel.cu(" in log


MERGE = {"ROWS": 64, "THREADS": cupy_attention_merge.THREADS, "PARTS": cupy_attention_merge.PARTS}


@pytest.mark.parametrize("element", cupy_kernels.ELEMENTS)
@pytest.mark.parametrize(("splits", "value_size"), [(2, 5), (64, 128)])
def test_merge_compiles_for_hopper(splits: int, value_size: int, element: str) -> None:
    code = cupy_kernels.code_of(
        cupy_attention_merge.SOURCE, element, MERGE | {"SPLITS": splits, "VALUE_SIZE": value_size}
    )
    assert kernels_in(code) == [cupy_attention_merge.NAME]
    assert compiled(code, (*HOPPER, "--ptxas-options=--warn-on-spills")) == (True, "")


SIZES = {"ROWS": 64, "THREADS": 128, "SIZE": 128, "VALUE_SIZE": 128, "BFLOAT16": 1, "WAVES": cupy_attention_mma.WAVES}
WAITING = [
    (cupy_attention_merge.SOURCE, MERGE | {"SPLITS": 16, "VALUE_SIZE": 128}),
    *((cupy_attention_kernel.SOURCE, constants(cupy_attention_kernel, STREAMING=s, EXPLICIT=s)) for s in (0, 1)),
    *((cupy_attention_mma.SOURCE, SIZES | {"STREAMING": s, "EXPLICIT": s}) for s in (0, 1)),
    *(
        (cupy_verification_kernel.SOURCE, constants(cupy_verification_kernel, LOGITS=logits, DRAFT=draft))
        for logits, draft in product((0, 1), (0, 1, 2))
    ),
]


@pytest.mark.parametrize(("source", "made"), WAITING)
def test_kernels_wait_before_they_read(source: str, made: dict[str, int]) -> None:
    """They are launched before earlier ones are done; a compiler may move what it takes for constant."""
    options = (*cupy_kernels.OPTIONS, "--gpu-architecture=compute_90")
    code = cupy_kernels.code_of(source, "bfloat16", made)
    assert access_before_waiting(ptx_of(code, options)) == []
    assert access_before_waiting(ptx_of(code.replace("    wait_for_earlier();", ""), options)) == kernels_in(code)


def test_all_kernels_are_among_them() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (BACKENDS / "cupy").rglob("*.py")]
    there = {name for text in texts for name in re.findall(r'extern "C" __global__ .* (\w+)\(', text)}
    tested = {name for source, made in WAITING for name in kernels_in(cupy_kernels.code_of(source, "bfloat16", made))}
    assert tested == there


@pytest.mark.parametrize(
    "early", ["ld.global.nc.u32 %r1, [%rd1];", "st.volatile.global.u32 [%rd1], 0;", "ld.u32 %r1, [%rd1];", "bra $L1;"]
)
def test_early_access_is_noticed(early: str) -> None:
    waits, fine = "griddepcontrol.wait;", "ld.param.u64 %rd1, [a]; st.shared.u32 [%rd2], 0;"
    assert access_before_waiting(f".entry good( ) {fine} {waits} {early} .entry bad( ) {early} {waits}") == ["bad"]


class FakeArray(np.ndarray):
    """Passes for a CuPy array where only its type and its address are looked at."""

    @property
    def data(self):
        return SimpleNamespace(ptr=self.ctypes.data)


FakeArray.__module__ = "cupy"


def fake(*shape: int, dtype: str = "float32") -> FakeArray:
    return np.zeros(shape, dtype=dtype).view(FakeArray)


def test_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cupy_kernels.RAW, raising=False)
    assert cupy_kernels.may_run(fake(1))
    assert not cupy_kernels.may_run(fake(1), np.zeros(1))
    monkeypatch.setenv(cupy_kernels.RAW, "0")
    assert not cupy_kernels.may_run(fake(1))


QUERY, KEY = fake(1, 4, 2, 64), fake(1, 2, 9, 64)


@pytest.mark.parametrize(
    ("query", "key", "value", "taken"),
    [
        (QUERY, KEY, KEY, True),
        (fake(1, 4, 16, 64), KEY, KEY, True),
        (fake(1, 4, 17, 64), KEY, KEY, False),
        (fake(1, 4, 2, 129), fake(1, 2, 9, 129), KEY, False),
        (QUERY, KEY, fake(1, 2, 9, 129), False),
        (QUERY, KEY, fake(1, 2, 9, 64, dtype="float16"), False),
        (*(fake(*a.shape, dtype="float64") for a in (QUERY, KEY, KEY)), False),
        (QUERY, fake(1, 2, 64, 9).swapaxes(2, 3), KEY, False),
        (QUERY, fake(1, 2, 30, 64)[:, :, 4:13], fake(1, 2, 30, 64)[:, :, 4:13], True),  # a part of a larger cache
        (QUERY, fake(1, 2, 0, 64), fake(1, 2, 0, 64), False),
        (np.asarray(QUERY), KEY, KEY, False),
    ],
)
def test_attention_kernel_takes(query, key, value, taken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cupy_kernels.RAW, "1")
    assert cupy_attention_kernel.chosen(query, key, value) is taken


IDS = fake(2, 3, dtype="int64")


@pytest.mark.parametrize(
    ("ids", "target", "draft", "taken"),
    [
        (IDS, fake(2, 4, 9), fake(2, 3, 9), True),
        (IDS, fake(2, 4, 9), None, True),
        (IDS, fake(2, 4, 9, dtype="float16"), fake(2, 3, 9), True),
        (IDS, fake(2, 4, 9), fake(2, 3, 9, dtype="float16"), False),
        (IDS, fake(2, 4, 9), fake(2, 3, 9, dtype="float64"), False),
        (IDS, fake(2, 4, 9, dtype="float64"), None, False),
        (IDS, fake(2, 9, 4).swapaxes(1, 2), None, False),
        (fake(0, 3, dtype="int64"), fake(0, 4, 9), None, False),
        (fake(1, 255, dtype="int64"), fake(1, 256, 9), None, True),
        (fake(1, 256, dtype="int64"), fake(1, 257, 9), None, False),
        (fake(1, 0, dtype="int64"), fake(1, 1, 2**21), None, True),
        (fake(1, 0, dtype="int64"), fake(1, 1, 2**21 + 1), None, False),
        (IDS, np.zeros((2, 4, 9), dtype="float32"), None, False),
    ],
)
def test_verification_kernel_takes(ids, target, draft, taken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cupy_kernels.RAW, "1")
    assert cupy_verification_kernel.chosen(ids, target, draft) is taken


def test_keys_are_split_to_fill_the_card() -> None:
    assert cupy_attention_kernel.splits_of(blocks=1, keys=100_000, multiprocessors=132) == 64
    assert cupy_attention_kernel.splits_of(blocks=32, keys=100_000, multiprocessors=132) == 16
    assert cupy_attention_kernel.splits_of(blocks=1, keys=200, multiprocessors=132) == 3
    assert cupy_attention_kernel.splits_of(blocks=1000, keys=100_000, multiprocessors=132) == 1


def test_rows_are_split_to_fill_the_card() -> None:
    """(eights, chunks) of a row: chunks of 2,048 tokens where those of 8,192 were few, and never too many to join."""
    split, most = cupy_verification_kernel.split, cupy_verification_kernel.THREADS
    assert [split(1, v) for v in (1, 2048, 2049, 151_552)] == [(1, 1), (1, 1), (1, 2), (1, 74)]
    assert split(64, 151_552) == (4, 19)
    assert [split(1, v) for v in (2048 * most, 2048 * most + 1, 8192 * most)] == [(1, most), (4, 65), (4, most)]


ROUND_TRIP = """
extern "C" __global__ void convert(
    const element* bits, const float* given, float* floats, element* rounded, int count
) {
    if ((int)threadIdx.x >= count) return;
    floats[threadIdx.x] = to_float(bits[threadIdx.x]);
    rounded[threadIdx.x] = to_element(given[threadIdx.x]);
}
"""


@pytest.mark.skipif(cuda_on_host.COMPILER is None, reason="there is no C++ compiler (g++)")
@pytest.mark.parametrize("element", ["float16", "bfloat16"])
def test_half_precision_conversions(element: str) -> None:
    """bfloat16 is the kernels' own code; float16 is that of the emulation, since the kernels use an instruction."""
    bits = [0, 0x8000, 1, 0x3FF, 0x400, 0x3C00, 0xBC01, 0x7BFF, 0x7C00, 0xFC00, 0x7E00, 0x3F80]
    ties = [1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-8, 1 + 3 * 2**-8]
    bits = np.array(bits, dtype="uint16")
    given = np.array([0.0, -0.0, *ties, 65519, 65520, -1e30, 3e-8, np.inf, np.nan], dtype="float32")
    floats, rounded = np.empty(12, dtype="float32"), np.empty(12, dtype="uint16")
    cuda_on_host.launch(ROUND_TRIP, "convert", element, {}, (1,), 32, (bits, given, floats, rounded, np.int32(12)))
    if element == "float16":
        with np.errstate(over="ignore"):
            expected = bits.view("float16").astype("float32"), given.astype("float16")
        found = rounded.view("float16")
    else:
        exact = (bits.astype("uint32") << 16).view("float32")
        whole = given.view("uint32")
        near = ((whole + 0x7FFF + (whole >> 16 & 1)) >> 16 << 16).view("float32")
        expected = exact, np.where(np.isnan(given), given, near)
        found = (rounded.astype("uint32") << 16).view("float32")
    np.testing.assert_array_equal(floats, expected[0])
    np.testing.assert_array_equal(found, expected[1])
