"""How others are called, shown by stand-ins with their documented shapes: FlashInfer's and CuPy's.

Neither library runs without a GPU; what a stand-in cannot show is whether the library does what it documents.
"""

import os
import sys
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import cupy_on_numpy
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch.nn.functional import scaled_dot_product_attention as sdpa  # noqa: E402

from zigzag.backends.cupy.raw import kernels as cupy_kernels  # noqa: E402
from zigzag.bench import attention, cupy_methods, peers, timing, verification  # noqa: E402
from zigzag.bench.cases import Row, run_case  # noqa: E402

CPU = torch.device("cpu")
SMALL = (4, 2, 16)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "RUNS", 1)
    monkeypatch.setattr(timing, "WARM", 0)
    monkeypatch.setattr(timing, "COPY_BYTES", 1 << 20)
    monkeypatch.setattr(timing, "MATRIX", 256)
    monkeypatch.setattr(verification, "VOCABULARY", 500)
    monkeypatch.setattr(verification, "REACH", 5)
    monkeypatch.setattr(peers, "FLASHINFER_SIZES", (SMALL[2],))


def attend(query: Any, key: Any, value: Any) -> Any:
    """[B, H, Tq, D] after all keys."""
    queries, keys = query.shape[2], key.shape[2]
    seen = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    return sdpa(query, key, value, attn_mask=seen, enable_gqa=True)


class Paged:
    """BatchDecodeWithPagedKVCacheWrapper."""

    def __init__(self, workspace: Any, kv_layout: str, use_tensor_cores: bool) -> None:
        assert workspace.dtype == torch.uint8 and kv_layout == "HND" and not workspace.any()

    def plan(self, indptr, indices, last, heads, groups, size, page, *, q_data_type, kv_data_type) -> None:
        assert {each.dtype for each in (indptr, indices, last)} == {torch.int32} and (last == page).all()
        self.indptr, self.indices, self.shape = indptr, indices, (groups, size)

    def run(self, query: Any, cache: Any) -> Any:
        outputs = []
        for n, row in enumerate(query):
            pages = self.indices[self.indptr[n] : self.indptr[n + 1]]
            key, value = (part[pages].transpose(0, 1).flatten(1, 2) for part in cache)
            assert key.shape[::2] == self.shape
            outputs.append(attend(row[None, :, None], key[None], value[None])[0, :, 0])
        return torch.stack(outputs)


def chain(draft_probs, draft_token_ids, target_probs, *, seed, offset) -> Any:
    """chain_speculative_sampling with coins of 1/2; what follows is the most likely token of the residual."""
    assert draft_token_ids.dtype == torch.int32 and target_probs.dtype == torch.float32
    assert seed.dtype == offset.dtype == torch.int64 and seed.ndim == 1
    batch, drafts = draft_token_ids.shape
    tokens = torch.full((batch, drafts + 1), -1, dtype=torch.int32)
    emitted = torch.zeros(batch, dtype=torch.int32)
    for b in range(batch):
        n = 0
        while n < drafts:
            token = int(draft_token_ids[b, n])
            if 0.5 * draft_probs[b, n, token] >= target_probs[b, n, token]:
                break
            tokens[b, n], n = token, n + 1
        left = target_probs[b, n] - (draft_probs[b, n] if n < drafts else 0)
        tokens[b, n], emitted[b] = left.argmax(), n
    return tokens, emitted + 1, emitted


FLASHINFER = SimpleNamespace(
    single_decode_with_kv_cache=lambda q, k, v, *, kv_layout, use_tensor_cores: attend(
        q[None, :, None], k[None], v[None]
    )[0, :, 0],
    single_prefill_with_kv_cache=lambda q, k, v, *, causal, kv_layout, backend: attend(
        q.transpose(0, 1)[None], k[None], v[None]
    )[0].transpose(0, 1),
    BatchDecodeWithPagedKVCacheWrapper=Paged,
    sampling=SimpleNamespace(
        softmax=lambda logits, temperature: torch.softmax(logits.float(), dim=-1), chain_speculative_sampling=chain
    ),
)


def rows_of(case: Any, name: str) -> list[Row]:
    return [row for row in run_case(case, CPU) if row.method.startswith(name)]


@pytest.mark.parametrize(("batch", "queries", "names"), [
    (1, 1, ["FlashInfer"]), (1, 5, ["FlashInfer"]), (3, 1, ["FlashInfer"]),
])  # fmt: skip
def test_flashinfer_attention(batch: int, queries: int, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flashinfer", FLASHINFER)
    case = attention.decode_case(CPU, "g", SMALL, batch, 64, queries=queries)
    rows = rows_of(case, "FlashInfer")
    assert [row.method for row in rows] == names
    assert not any(row.note for row in rows), rows
    assert all(row.error < 1e-5 for row in rows)


def test_flashinfer_verification(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flashinfer", FLASHINFER)
    for rate in verification.ACCEPTANCE:
        (row,) = rows_of(verification.verify_case(CPU, 4, rate, "dense"), "FlashInfer")
        assert (row.note, row.error) == ("", 0) and "float32" in row.remark


def test_a_wrong_peer_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = SimpleNamespace(**{**vars(FLASHINFER), "single_decode_with_kv_cache": lambda q, k, v, **options: q})
    never = SimpleNamespace(softmax=FLASHINFER.sampling.softmax)
    never.chain_speculative_sampling = lambda q, ids, p, **options: chain(0 * q + 1e9, ids, p, **options)
    wrong.sampling = never
    monkeypatch.setitem(sys.modules, "flashinfer", wrong)
    (row,) = rows_of(attention.decode_case(CPU, "g", SMALL, 1, 64), "FlashInfer")
    assert row.note.startswith("wrong: error")
    (row,) = rows_of(verification.verify_case(CPU, 4, 1.0, "dense"), "FlashInfer")
    assert row.note.startswith("wrong: error 1")


def test_heads_of_other_sizes_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flashinfer", FLASHINFER)
    (row,) = rows_of(attention.decode_case(CPU, "g", (4, 2, 24), 1, 64), "FlashInfer")
    assert row.eager is None and row.note == "its merge takes heads of 16, not of 24"


def test_a_shape_that_pages_do_not_divide_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flashinfer", FLASHINFER)
    (row,) = rows_of(attention.decode_case(CPU, "g", SMALL, 2, 60), "FlashInfer")
    assert row.eager is None and row.note.startswith("RuntimeError")


def test_a_library_that_does_not_import_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise OSError("libcudart.so.13: no such file")

    assert peers._library("no_such_library") == "not installed"
    monkeypatch.setattr(peers, "import_module", broken)
    assert peers._library("flashinfer") == "OSError: libcudart.so.13: no such file"


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """NumPy in the place of CuPy, with the calls that the rows make; gives what happened to the allocator."""
    happened: list[str] = []
    fake = SimpleNamespace(
        from_dlpack=np.from_dlpack,
        cuda=SimpleNamespace(
            ExternalStream=lambda pointer: nullcontext(),
            get_allocator=lambda: "before",
            set_allocator=happened.append,
            PythonFunctionAllocator=lambda malloc, free: SimpleNamespace(malloc="of torch"),
        ),
    )
    monkeypatch.setattr(cupy_methods, "_cupy", lambda: fake)
    monkeypatch.setattr(cupy_methods, "BACKEND", cupy_on_numpy.NAME)
    monkeypatch.setattr(cupy_methods, "_half_instead", lambda: "")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0))
    return happened


def on_gpu(op: str, takes: Any, **options: Any) -> dict[str, Any]:
    return cupy_methods.cupy_methods(op, SimpleNamespace(type="cuda"), takes=takes, **options)


def test_cupy_attention(cupy: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cupy_kernels.RAW, "old")
    asked: list[Any] = []

    def takes(*arrays: Any) -> bool:
        asked.append((os.environ[cupy_kernels.RAW], [type(a) for a in arrays]))
        return len(asked) > 9  # never

    case = attention.decode_case(CPU, "g", SMALL, 2, 64, streaming=True)
    window = {"sink": attention.SINK, "recent": attention.RECENT}
    object.__setattr__(case, "methods", on_gpu("attention", takes, **window))
    plain, raw = run_case(case, CPU)
    assert (plain.method, plain.note) == ("cupy", "") and plain.error < 1e-5
    assert raw.note == "ValueError: the raw kernel does not take arrays like these"  # the row is never another's
    assert asked == [("1", 3 * [np.ndarray])]
    assert cupy == ["of torch", "before"] * 2
    assert os.environ[cupy_kernels.RAW] == "old"


def test_cupy_verification(cupy: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cupy_kernels.RAW, raising=False)
    for rule in ("greedy", "one-hot", "dense"):
        case = verification.verify_case(CPU, 3, 0.7, rule)
        op, options = ("verify_greedy", {}) if rule == "greedy" else ("verify_residual", {"temperature": 1.0})
        object.__setattr__(case, "methods", on_gpu(op, lambda *arrays: True, validate=False, **options))
        rows = list(run_case(case, CPU))
        assert [row.method for row in rows][:2] == ["cupy", "cupy raw"]
        assert [(row.note, row.error) for row in rows[:2]] == [("", 0), ("", 0)]
    assert cupy_kernels.RAW not in os.environ


def test_cupy_without_bfloat16_takes_half(cupy: list[str]) -> None:
    tensors = torch.ones(2, dtype=torch.bfloat16), torch.ones(2), None
    array, other, none = cupy_methods._to_cupy(torch.float16, *tensors)
    assert (array.dtype, other.dtype, none) == (np.float16, np.float32, None)
