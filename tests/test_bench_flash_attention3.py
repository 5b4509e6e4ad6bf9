"""How FlashAttention 3 is called, shown by a stand-in with the arguments of vLLM 0.33's library.

The library runs on Hopper cards only; what a stand-in cannot show is whether it does what its signature says.
"""

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch.nn.functional import scaled_dot_product_attention as sdpa  # noqa: E402

from zigzag import ops  # noqa: E402
from zigzag.bench import attention, exclusive, flash_attention3, ragged, timing  # noqa: E402
from zigzag.bench.cases import Row, run_case  # noqa: E402

CPU = torch.device("cpu")
NAME = "FlashAttention 3"
PAGE = 16


class Library:
    """The two operators in Python; `wrong` says what it does otherwise."""

    def __init__(self, wrong: str = "") -> None:
        self.wrong, self.planned = wrong, []

    def get_scheduler_metadata(
        self, batch, queries, keys, heads, groups, size, value_size, dtype, used, cu_q, cu_k, cu_new, used_q, leftpad,
        page_size, new, causal, left, right, softcap, splits, pack, margin,
    ) -> Any:  # fmt: skip
        assert used.tolist() == [keys] * batch and used.dtype == torch.int32 and (left, right) == (-1, -1) and causal
        self.planned.append((batch, queries, keys, heads, groups, size, value_size))
        return len(self.planned)

    def fwd(
        self, q, k, v, k_new, v_new, q_v, out, cu_q, cu_k, cu_new, used_q, used_k, queries, keys, pages, batch_at,
        leftpad, cos, sin, lens, q_by, k_by, v_by, scale, causal, left, right, softcap, interleaved, plan, splits,
        pack, margin, sinks, world, rank, total,
    ) -> list[Any]:  # fmt: skip
        assert all(each is None for each in (k_new, v_new, q_v, out, used_k, pages, sinks, total)) and world == 1
        assert cu_q.dtype == cu_k.dtype == torch.int32 and softcap == 0 and (left, right) == (-1, -1)
        assert self.planned[plan - 1][:3] == (len(cu_q) - 1, queries, keys)
        outputs = []
        for b in range(len(cu_q) - 1):
            rows, span = slice(*cu_q[b : b + 2].tolist()), slice(*cu_k[b : b + 2].tolist())
            states = [x[part].transpose(0, 1)[None] for x, part in ((q, rows), (k, span), (v, span))]
            seen = torch.ones(queries, keys, dtype=torch.bool)
            mask = seen.tril(keys - queries) if causal and self.wrong != "no mask" else seen
            outputs.append(sdpa(*states, attn_mask=mask, scale=scale, enable_gqa=True)[0].transpose(0, 1))
        return [torch.cat(outputs[::-1] if self.wrong == "order" else outputs)]


class Paged:
    """`fwd` over pages in Python."""

    def fwd(
        self, q, k, v, k_new, v_new, q_v, out, cu_q, cu_k, cu_new, used_q, used_k, queries, keys, pages, batch_at,
        leftpad, cos, sin, lens, q_by, k_by, v_by, scale, causal, left, right, softcap, interleaved, plan, splits,
        pack, margin, sinks, world, rank, total,
    ) -> list[Any]:  # fmt: skip
        assert all(each is None for each in (cu_k, cu_new, used_q, batch_at, leftpad, plan, sinks, total))
        assert causal and k.shape[1] == PAGE and queries >= int((cu_q[1:] - cu_q[:-1]).max()) and keys >= used_k.max()
        parts = []
        for row, length in enumerate(used_k.tolist()):
            new = q[cu_q[row] : cu_q[row + 1]].transpose(0, 1)[None]
            own = [x[pages[row].long()].flatten(0, 1)[:length].transpose(0, 1)[None] for x in (k, v)]
            at, key_at = torch.arange(length - new.shape[2], length)[:, None], torch.arange(length)
            seen = (key_at <= at) & ((left < 0) | (at - key_at <= left))
            parts.append(sdpa(new, *own, attn_mask=seen, scale=scale, enable_gqa=True)[0].transpose(0, 1))
        return [torch.cat(parts)]


@pytest.mark.parametrize("recent", [None, 200])
def test_over_pages(recent: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """All keys, or a window without sinks, as the op has them."""
    monkeypatch.setattr(flash_attention3, "_kernels", lambda device: Paged())
    rows = [(1, 300), (40, 290)]
    query, key, value, starts, lengths, table = ragged._inputs(CPU, rows, 0)
    method = flash_attention3.over_pages(CPU, 40, 300, recent)
    found = method.call(query, key, value, starts, lengths, table)
    window = {} if recent is None else {"sink": 0, "recent": recent}
    where = {"query_starts": starts, "lengths": lengths, "block_table": table}
    exact, _ = ops.ragged_attention(query, key, value, **where, **window)
    torch.testing.assert_close(found, exact)


def test_the_suite_on_a_cpu() -> None:
    """Each case's own check of its methods; one key more is noticed."""
    for case in ragged.ragged(CPU):
        row = next(row for row in run_case(case, CPU) if row.method == "torch")
        assert row.eager and not row.note and row.error < 1e-5
        arrays = case.inputs(0)
        names = ("query_starts", "lengths", "block_table")
        wider, _ = ops.ragged_attention(
            *arrays[:3], **dict(zip(names, arrays[3:], strict=True)), sink=ragged.SINK, recent=ragged.RECENT + 1
        )
        assert case.error(wider, case.truth(*arrays)) > case.tolerance


def test_pairs_of_a_step() -> None:
    for new, keys in ((1, 5), (40, 40), (300, 1_600), (1, 1_024)):
        at = torch.arange(keys - new, keys)
        assert ragged._seen(new, keys) == int(
            ops.visible(at, torch.arange(keys), sink=ragged.SINK, recent=ragged.RECENT).sum()
        )


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RUNS": 1, "WARM": 0, "COPY_BYTES": 1 << 20, "MATRIX": 256}.items():
        monkeypatch.setattr(timing, name, value)


def measured(case: Any) -> Row:
    (row,) = (row for row in run_case(case, CPU) if row.method.startswith(NAME))
    return row


@pytest.mark.parametrize(("batch", "queries"), [(1, 1), (1, 5), (3, 1), (2, 4)])
def test_the_last_queries_over_a_cache(batch: int, queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    monkeypatch.setattr(flash_attention3, "_kernels", lambda device: library)
    row = measured(attention.decode_case(CPU, "g", (4, 2, 16), batch, 64, queries=queries))
    assert row.note == "" and row.error < 1e-5 and "planned outside" in row.remark
    assert set(library.planned) == {(batch, queries, 64, 4, 2, 16, 16)}


@pytest.mark.parametrize("wrong", ["no mask", "order"])
def test_a_wrong_one_shows(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash_attention3, "_kernels", lambda device: Library(wrong))
    row = measured(attention.decode_case(CPU, "g", (4, 2, 16), 3, 64, queries=4))
    assert row.note.startswith("wrong: error")


def test_a_step_of_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """On views of the caches: not a byte of them is copied; several sequences would be."""
    monkeypatch.setattr(flash_attention3, "_kernels", lambda device: Library())
    monkeypatch.setattr(exclusive, "WINDOW", {"sink": 2, "recent": 6})
    for batch in (1, 2):
        pool = exclusive._filled(CPU, exclusive._elements(2, batch, 32))
        case = exclusive._case(pool, 2, batch, 32)
        row = measured(case)
        if batch > 1:
            assert row.eager is None and "one behind the other" in row.note
            continue
        assert row.note == "" and row.error < 1e-5
        (layers,) = case.methods[row.method].adapt(*case.inputs(0))
        ends = pool.data_ptr(), pool.data_ptr() + pool.numel() * pool.element_size()
        assert all(ends[0] <= x.data_ptr() < ends[1] for _, key, value, *_ in layers for x in (key, value))


def test_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    flash_attention3._kernels.cache_clear()
    assert flash_attention3.flash_attention3(CPU, 1, 1) == "its kernels are for Hopper cards"
    card = SimpleNamespace(type="cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    find = flash_attention3._kernels.__wrapped__
    for found in (None, SimpleNamespace(submodule_search_locations=[str(tmp_path)])):
        monkeypatch.setattr(flash_attention3, "find_spec", lambda name, found=found: found)
        assert find(card).startswith("not installed: vllm")
    library = tmp_path / flash_attention3.LIBRARY
    library.parent.mkdir()
    library.write_bytes(b"")
    assert find(card).startswith("OSError")
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    assert find(card) is torch.ops._vllm_fa3_C
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert find(card) == "its kernels are for Hopper cards"
