"""The raw CUDA kernels: each compiles for Hopper without a warning, for each dtype; none is chosen without a record."""

import re
from collections.abc import Mapping
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
from zigzag.backends.cupy.raw import attention_many as cupy_attention_many
from zigzag.backends.cupy.raw import attention_merge as cupy_attention_merge
from zigzag.backends.cupy.raw import attention_mma as cupy_attention_mma
from zigzag.backends.cupy.raw import kernels as cupy_kernels
from zigzag.backends.cupy.raw import verification as cupy_verification_kernel

RAW = Path(__file__).resolve().parents[1] / "backends/cupy/raw"
HOPPER = (*cupy_kernels.OPTIONS, "--gpu-architecture=sm_90")
KERNELS = {
    "attention.cu": ["decode_attention"],
    "attention_many.cu": ["decode_attention_many"],
    "attention_merge.cu": ["merge_parts"],
    "attention_mma.cu": ["decode_attention_mma"],
    "verification_greedy.cu": ["best_of_chunks", "decide_greedy"],
    "verification_residual.cu": ["mass_of_chunks", "judge_residual", "recover", "settle_one_hot"],
}
SWITCHES = {
    "attention.cu": ("STREAMING", "EXPLICIT"),
    "attention_many.cu": ("STREAMING", "EXPLICIT"),
    "attention_merge.cu": (),
    "attention_mma.cu": ("STREAMING", "EXPLICIT"),
    "verification_greedy.cu": (),
    "verification_residual.cu": ("LOGITS", "DRAFT"),
}
ROWS, THREADS = cupy_attention_kernel.ROWS, cupy_attention_kernel.THREADS
OF_A_ROW = {"THREADS": cupy_verification_kernel.THREADS, "EIGHTS": cupy_verification_kernel.EIGHTS}
SIZES = {
    "attention.cu": {
        **{"ROWS": ROWS, "THREADS": THREADS, "KEYS": cupy_attention_kernel.KEYS},
        **{"SIZE": 32, "VALUE_SIZE": 32},
    },
    "attention_many.cu": {
        **{"ROWS": cupy_attention_many.MOST_ROWS, "THREADS": cupy_attention_many.THREADS},
        **{"SIZE": 128, "VALUE_SIZE": 128},
    },
    "attention_merge.cu": {
        **{"ROWS": 64, "THREADS": cupy_attention_merge.THREADS, "PARTS": cupy_attention_merge.PARTS},
        **{"SPLITS": 16, "VALUE_SIZE": 128},
    },
    "attention_mma.cu": {
        **{"ROWS": ROWS, "THREADS": THREADS, "WAVES": cupy_attention_mma.WAVES},
        **{"SIZE": 128, "VALUE_SIZE": 128},
    },
    "verification_greedy.cu": OF_A_ROW,
    "verification_residual.cu": OF_A_ROW,
}


def code_of(file: str, element: str, switches: tuple[int, ...] = (), sizes: Mapping[str, int] | None = None) -> str:
    given = dict(zip(SWITCHES[file], switches, strict=True))
    constants = {**SIZES[file], **given, **(sizes or {})}
    if file == "attention_many.cu":
        cut = cupy_attention_many.constants_of(constants["SIZE"], constants["VALUE_SIZE"], bool(given["EXPLICIT"]))
        constants |= cut
    return cupy_kernels.code_of(cupy_kernels.source_of(file), element, constants)


# All switches with float32; with the other dtypes each switch on and off.
VARIANTS = [("float32", switches) for switches in product([0, 1], repeat=2)]
VARIANTS += [(element, switches) for element in cupy_kernels.ELEMENTS for switches in [(0, 1), (1, 0)]][2:]
SWITCHED = [(file, *variant) for file in ("attention.cu", "verification_residual.cu") for variant in VARIANTS]
GREEDY = [("verification_greedy.cu", element, ()) for element in cupy_kernels.ELEMENTS]


@pytest.mark.parametrize(("file", "element", "switches"), SWITCHED + GREEDY, ids=str)
def test_compiles_for_hopper(file: str, element: str, switches: tuple[int, ...]) -> None:
    assert compiled(code_of(file, element, switches), HOPPER) == (True, "")


def test_largest_heads_fit() -> None:
    """Shared memory is limited, and the compiler counts it."""
    largest = {"SIZE": cupy_attention_kernel.MAX_SIZE, "VALUE_SIZE": cupy_attention_kernel.MAX_SIZE}
    assert compiled(code_of("attention.cu", "bfloat16", (1, 0), largest), HOPPER) == (True, "")
    largest["SIZE"] *= 4
    is_fine, log = compiled(code_of("attention.cu", "bfloat16", (1, 0), largest), HOPPER)
    assert not is_fine and "shared" in log


SPILLS = (*HOPPER, "--ptxas-options=--warn-on-spills")


@pytest.mark.parametrize(
    ("element", "draft"), [("bfloat16", 0), ("float16", 1), ("float32", 1), ("float16", 2), ("bfloat16", 2)]
)
@pytest.mark.parametrize("logits", [0, 1])
def test_no_registers_are_spilled(element: str, draft: int, logits: int) -> None:
    """2: draft rows of float32 beside half precision."""
    code = code_of("verification_residual.cu", element, (logits, draft))
    assert compiled(code, SPILLS) == (True, "")
    if draft and logits:
        assert "spilled" in compiled(code.replace("(THREADS, AT_ONCE)", "(THREADS, 8)"), SPILLS)[1]


@pytest.mark.parametrize("element", cupy_kernels.ELEMENTS)
def test_greedy_spills_no_registers(element: str) -> None:
    assert compiled(code_of("verification_greedy.cu", element), SPILLS) == (True, "")


@pytest.mark.parametrize("file", KERNELS)
def test_every_kernel_is_compiled(file: str) -> None:
    source = cupy_kernels.source_of(file)
    assert kernels_in(source) == KERNELS[file] and "#include" not in source
    assert {element for element, _ in VARIANTS} == set(cupy_kernels.ELEMENTS)


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("fmaxf(highest[m], warp_max(score))", "fmaxf(highest, warp_max(score))", "error"),
        ("__syncthreads();", "__syncthread();", "undefined"),
        ("const int split = blockIdx.x", "int unused; const int split = blockIdx.x", "never referenced"),
        ("#define ELEMENT FLOAT32", "", "element"),
    ],
    ids=["type", "name", "warning", "no element"],
)
def test_compile_check_can_fail(right: str, wrong: str, said: str) -> None:
    code = code_of("attention.cu", "float32", (0, 0))
    assert right in code
    is_fine, log = compiled(code.replace(right, wrong), HOPPER)
    assert (is_fine, log) != (True, "") and said in log and "kernel.cu(" in log


@pytest.mark.parametrize("element", cupy_kernels.ELEMENTS)
@pytest.mark.parametrize(("splits", "value_size"), [(2, 5), (64, 128)])
def test_merge_compiles_for_hopper(splits: int, value_size: int, element: str) -> None:
    code = code_of("attention_merge.cu", element, sizes={"SPLITS": splits, "VALUE_SIZE": value_size})
    assert compiled(code, SPILLS) == (True, "")


WAITING = [
    ("attention_merge.cu", ()),
    *((file, (s, s)) for file in ("attention.cu", "attention_many.cu", "attention_mma.cu") for s in (0, 1)),
    ("verification_greedy.cu", ()),
    *(("verification_residual.cu", switches) for switches in product((0, 1), (0, 1, 2))),
]


@pytest.mark.parametrize(("file", "switches"), WAITING)
def test_kernels_wait_before_they_read(file: str, switches: tuple[int, ...]) -> None:
    """They are launched before earlier ones are done; a compiler may move what it takes for constant."""
    options = (*cupy_kernels.OPTIONS, "--gpu-architecture=compute_90")
    code = code_of(file, "bfloat16", switches)
    assert access_before_waiting(ptx_of(code, options)) == []
    assert access_before_waiting(ptx_of(code.replace("    wait_for_earlier();", ""), options)) == KERNELS[file]


def test_all_kernels_are_among_them() -> None:
    texts = [path.read_text(encoding="utf-8") for path in RAW.iterdir() if path.suffix in (".cu", ".cuh", ".py")]
    there = {name for text in texts for name in re.findall(r'extern "C" __global__ .* (\w+)\(', text)}
    assert {name for file, _ in WAITING for name in KERNELS[file]} == there


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
    source = cupy_kernels.source_of("elements.cuh") + ROUND_TRIP
    cuda_on_host.launch(source, "convert", element, {}, (1,), 32, (bits, given, floats, rounded, np.int32(12)))
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
