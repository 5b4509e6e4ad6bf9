"""Triton's `apply_experts` for many tokens, part by part: its order, its kernels, its slabs, what it holds."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import finalize

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("triton", reason="triton is not installed")

from torch.nn import functional  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from zigzag.backends import triton as triton_ops  # noqa: E402
from zigzag.backends.torch import experts as torch_experts  # noqa: E402
from zigzag.backends.triton import prompt_experts  # noqa: E402
from zigzag.conformance import arrays  # noqa: E402
from zigzag.conformance.test_experts import by_hand, check, crowd, made  # noqa: E402

MISSING = triton_ops.unavailable() or ("" if hasattr(functional, "grouped_mm") else "it needs torch 2.10")
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING or "it is available")

DEVICE = arrays.DEVICE
FAR = 2**27 + 3  # a row of 16 numbers that lies more than 2^31 elements behind the first


def on_device(values: Any, dtype: Any = None) -> Any:
    return torch.as_tensor(values, dtype=dtype, device=DEVICE)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """(rows, matrices, ends) of each grouped product, as they were when it was asked for."""
    given: list[tuple] = []
    right = functional.grouped_mm

    def recorded(rows, matrices, *, offs):
        given.append((rows.clone(), matrices, offs.clone()))
        return right(rows, matrices, offs=offs)

    monkeypatch.setattr(functional, "grouped_mm", recorded)
    return given


def test_sorted() -> None:
    """By expert, then by pair; what names no expert comes last."""
    places, ends = prompt_experts._sorted(on_device([3, 0, -1, 3, 4, 0, 1, 2**40]), 4)
    assert places.tolist() == [3, 0, 5, 4, 6, 1, 2, 7]
    assert ends.tolist() == [2, 3, 3, 5] and ends.dtype == torch.int32
    assert prompt_experts._sorted(on_device([-1, 9]), 3)[1].tolist() == [0, 0, 0]
    assert prompt_experts._sorted(on_device([2, 2]), 3)[1].tolist() == [0, 0, 2]


def test_sorted_of_narrow_ids() -> None:
    """Fewer bits than the number of experts has; and the most experts there may be."""
    most = prompt_experts.MOST_EXPERTS
    assert prompt_experts._sorted(on_device([5, -1, 100], torch.int8), 300)[0].tolist() == [0, 2, 1]
    places, ends = prompt_experts._sorted(on_device([most - 1, most, 0]), most)
    assert places.tolist() == [1, 2, 0] and ends[[0, -2, -1]].tolist() == [1, 1, 2]


@pytest.mark.parametrize(("slab", "columns"), [(8, 16), (20, 32), (19, 512), (4, 64)])
def test_slabs_and_parts_of_rows(slab: int, columns: int, products: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slabs and rows that end with less than a whole one, and that do not."""
    monkeypatch.setattr(prompt_experts, "SLAB", slab)
    monkeypatch.setattr(prompt_experts, "COLUMNS", columns)
    for dtype in arrays.dtypes_of("triton"):
        products.clear()
        check(crowd(2), "triton", dtype)
        sizes = [min(slab, 20 - start) for start in range(0, 20, slab)]
        assert [len(rows) for rows, *_ in products] == [3 * size for size in sizes for _ in range(2)]


def test_products_get_each_pair_once(products: list) -> None:
    """The hidden states sorted by expert; rows without an expert are never written, before the products or between."""
    case = crowd(3)
    triton_ops.apply_experts(*(arrays.convert(array, "torch", "float32") for array in case.arrays))
    ids, tokens = case.expert_ids.ravel(), np.repeat(np.arange(20), 3)
    order = [pair for expert in range(6) for pair in np.flatnonzero(ids == expert)]
    (states, _, ends), (act, _, same_ends) = products
    counts = np.bincount(ids[ids >= 0], minlength=6)
    assert ends.tolist() == same_ends.tolist() == np.cumsum(counts).tolist() and 0 < len(order) < 60
    assert np.array_equal(arrays.to_numpy(states)[: len(order)], case.hidden[tokens[order]].astype(np.float32))
    assert states[len(order) :].isnan().all() and act[len(order) :].isnan().all()
    assert states[: len(order)].isfinite().all() and act[: len(order)].isfinite().all()
    assert act.shape == (60, 40)


def test_weights_of_any_dtype_and_strides() -> None:
    """Views of larger arrays: every argument but the experts may be one, and so may these where rows are aligned."""
    case = crowd(4)
    hidden, ids, weights, gate_up, down = (arrays.convert(array, "torch", "float32") for array in case.arrays)
    views = [
        torch.cat([hidden, hidden], 1)[:, :24],
        torch.cat([ids.int(), ids.int()], 1)[:, :3],
        torch.stack([weights.double(), weights.double()], -1)[..., 0],
        torch.cat([gate_up, gate_up], 2)[..., :24],
        torch.cat([down, down], 1)[:, :24],
    ]
    assert not any(view.is_contiguous() for view in views) and prompt_experts.takes(*views[3:])
    out = triton_ops.apply_experts(*views)
    assert np.allclose(arrays.to_numpy(out), by_hand(case), rtol=1e-4, atol=1e-5)


def test_results_are_added_in_the_order_of_slots() -> None:
    """In float32: 2^25 - 2^25 + 1 is 1, and 0 where the 1 comes before."""
    results = on_device([[-(2.0**25)], [1.0], [2.0**25], [7.0]]).expand(4, 40).contiguous()
    out, used = torch.empty(2, 40, device=DEVICE), on_device([3], torch.int32)
    places = on_device([[2, 0, 1], [2, 1, 0]])
    prompt_experts.sum_rows[(2,)](results, out, places, used, 40, TOP_K=3, COLUMNS=64)
    assert out.unique(dim=1).tolist() == [[1.0], [0.0]]


def test_half_precision_is_added_in_float32() -> None:
    """2048 + 1 + 1 is 2048 in float16, if it is rounded after each."""
    results = on_device([[2048.0], [1.0], [1.0]], torch.float16).expand(3, 8).contiguous()
    out = torch.empty(1, 8, device=DEVICE, dtype=torch.float16)
    prompt_experts.sum_rows[(1,)](results, out, on_device([[0, 1, 2]]), on_device([3]), 8, TOP_K=3, COLUMNS=16)
    assert out.unique().tolist() == [2050.0]


def test_swiglu_is_rounded_once() -> None:
    """In place of the gates, nearest to the exact number; ups and rows without an expert stay."""
    rng = np.random.default_rng(0)
    before = on_device(4 * rng.standard_normal((4, 2 * 72)), torch.float16)
    weights, places = on_device(rng.standard_normal(4), torch.float32), on_device([2, 0, 3, 1])
    both = before.clone()
    prompt_experts.swiglu_rows[(8,)](both, weights, places, on_device([3]), 72, COLUMNS=64)
    gate, up = arrays.to_numpy(before).reshape(4, 2, 72).swapaxes(0, 1)
    weight = arrays.to_numpy(weights)[[1, 3, 0, 2]][:, None]
    exact = weight * gate / (1 + np.exp(-gate)) * up
    found = arrays.to_numpy(both)
    error = np.abs(found[:3, :72] - exact[:3]) / np.spacing(np.abs(exact[:3]).astype(np.float16)).astype(float)
    assert 0.4 < error.max() < 0.51
    assert np.array_equal(found[:, 72:], up) and np.array_equal(found[3, :72], gate[3])


def test_rows_at_the_far_end() -> None:
    """More than 2^31 elements behind the first. What is never written takes no memory on a CPU."""
    if DEVICE == "cpu":
        memory = torch.from_numpy(np.zeros((FAR + 1, 16), dtype=np.float16))
    else:
        memory = torch.zeros(FAR + 1, 16, dtype=torch.float16, device=DEVICE)
    used, row = on_device([FAR + 1]), torch.arange(1.0, 17, device=DEVICE).half()
    prompt_experts.copy_rows[(1,)](row[None], memory, on_device([FAR]), used, 16, TOP_K=1, COLUMNS=16)
    assert torch.equal(memory[FAR], row)
    out = torch.empty(1, 16, dtype=torch.float16, device=DEVICE)
    prompt_experts.sum_rows[(1,)](memory, out, on_device([FAR]), used, 16, TOP_K=1, COLUMNS=16)
    assert torch.equal(out[0], row)
    prompt_experts.swiglu_rows[(1,)](memory, on_device([0.5]), on_device([FAR]), used, 8, COLUMNS=16)
    gate, up = row.float().chunk(2)
    assert torch.allclose(memory[FAR, :8].float(), functional.silu(gate) * up / 2, rtol=1e-3)


class Held(TorchDispatchMode):
    """Counts the bytes of tensors that are made inside and still there."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        old = {tensor.untyped_storage().data_ptr() for tensor in args if isinstance(tensor, torch.Tensor)}
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor.untyped_storage(), old)
        return made

    def count(self, storage: Any, old: set[int]) -> None:
        start, size = storage.data_ptr(), storage.nbytes()
        if size and start not in old and start not in self.known:
            self.known.add(start)
            self.now += size
            self.most = max(self.most, self.now)
            finalize(storage, self.forget, start, size)

    def forget(self, start: int, size: int) -> None:
        self.known.discard(start)
        self.now -= size


class Idle:
    """Stands for a kernel: interpreted ones make tensors of their own."""

    def __getitem__(self, grid):
        return lambda *args, **options: None


@contextmanager
def idle_kernels() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("copy_rows", "swiglu_rows", "sum_rows"):
            patch.setattr(prompt_experts, name, Idle())
        patch.setattr(functional, "grouped_mm", functional.grouped_mm.__wrapped__)  # not poisoned, which takes memory
        yield


def most_held(tokens: int, call: Callable = prompt_experts.apply_to_prompt) -> int:
    """The most bytes beside the arguments and the output, for width 64 and inner 48 in bfloat16, 3 experts a token."""
    case = made(0, tokens, 3, 6, 64, 48)
    placed = [arrays.convert(np.nan_to_num(array), "torch", "bfloat16") for array in case.arrays]
    with idle_kernels(), Held() as held:
        output = call(*placed)
    assert held.now == output.nbytes
    return held.most - output.nbytes


@pytest.mark.parametrize("tokens", [20, 64, 65, 200])
def test_workspace(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said is what is allocated, and no more for several slabs than for one."""
    monkeypatch.setattr(prompt_experts, "SLAB", 64)
    said = prompt_experts.workspace_bytes(tokens, 3, 64, 48, 2)
    ends_of_experts_that_are_not_there = 4 * (prompt_experts.MOST_EXPERTS - 6)
    assert most_held(tokens) == said - ends_of_experts_that_are_not_there
    assert (said == prompt_experts.workspace_bytes(64, 3, 64, 48, 2)) is (tokens >= 64)


def test_more_memory_is_noticed() -> None:
    """One more copy of the rows, held during the call."""
    before = most_held(20)

    def wasteful(hidden, ids, *rest):
        copies = hidden.repeat_interleave(ids.shape[1], 0)
        return prompt_experts.apply_to_prompt(hidden + 0 * copies[: len(hidden)], ids, *rest)

    assert most_held(20, wasteful) >= before + 20 * 3 * 64 * 2


def test_workspace_of_glm() -> None:
    """GLM-4.5-Air's layer stays below 0.85 GiB however long the prompt is."""
    assert prompt_experts.workspace_bytes(10**6, 8, 4_096, 1_408, 2) < 0.85 * 2**30
    assert prompt_experts.workspace_bytes(4_096, 8, 4_096, 1_408, 2) > 0.4 * 2**30


def experts(width: int, inner: int, dtype: Any = torch.float16, count: int = 3) -> list:
    return [torch.zeros(count, 2 * inner, width, dtype=dtype), torch.zeros(count, width, inner, dtype=dtype)]


def shifted(gate_up: Any, down: Any) -> list:
    """The same sizes, beginning two bytes later."""
    return [gate_up, torch.zeros(down.numel() + 1, dtype=down.dtype)[1:].view(down.shape)]


TAKEN = {
    "half": experts(24, 40),
    "float": experts(12, 20, torch.float32),
    "most experts": experts(8, 8, count=1_023),
    "rows of wider ones": [torch.zeros(3, 80, 48).half()[..., :24], torch.zeros(3, 24, 80).half()[..., 40:]],
    "one for all": [torch.zeros(1, 80, 24).half().expand(3, -1, -1), torch.zeros(1, 24, 40).half().expand(3, -1, -1)],
}
NOT_TAKEN = {
    "width": experts(20, 40),
    "inner": experts(24, 36),
    "float": experts(12, 18, torch.float32),
    "one expert too many": experts(8, 8, count=1_024),
    "two bytes later": shifted(*experts(24, 40)),
    "rows of wider ones": [torch.zeros(3, 80, 44).half()[..., :24], torch.zeros(3, 24, 40).half()],
    "width, in wider rows": [torch.zeros(3, 80, 24).half()[..., :20], torch.zeros(3, 20, 40).half()],
    "inner, in wider rows": [torch.zeros(3, 72, 24).half(), torch.zeros(3, 24, 40).half()[..., :36]],
    "experts apart": [torch.zeros(3, 80 * 24 + 4).half()[:, : 80 * 24].unflatten(1, (80, 24)), experts(24, 40)[1]],
    "one row for all": [torch.zeros(3, 1, 24).half().expand(-1, 80, -1), experts(24, 40)[1]],
    "transposed": [torch.zeros(3, 24, 80).half().mT, experts(24, 40)[1]],
}  # fmt: skip


def product_of(gate_up: Any, down: Any) -> None:
    """Torch's products as the module asks for them, on the CPU."""
    ends = torch.full((len(down),), 2, dtype=torch.int32)
    both = functional.grouped_mm(torch.zeros(20, down.shape[1], dtype=down.dtype), gate_up.mT, offs=ends)
    functional.grouped_mm(both[:, : down.shape[2]], down.mT, offs=ends)


@pytest.mark.parametrize("name", TAKEN)
def test_taken(name: str) -> None:
    assert prompt_experts.takes(*TAKEN[name])
    product_of(*TAKEN[name])


@pytest.mark.parametrize("name", NOT_TAKEN)
def test_not_taken(name: str) -> None:
    assert not prompt_experts.takes(*NOT_TAKEN[name])


def test_what_is_not_taken_goes_to_torch(products: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes, and a torch without the product; up to 16 tokens never come here."""
    asked: list[int] = []
    right = torch_experts.apply_experts
    monkeypatch.setattr(torch_experts, "apply_experts", lambda h, *rest: asked.append(len(h)) or right(h, *rest))
    for width, inner, tokens in ((24, 40, 17), (24, 38, 18), (22, 40, 19), (24, 40, 16)):
        case = made(1, tokens, 2, 3, width, inner)
        check(case, "triton", "float32")
        assert bool(products) is (tokens == 17)
        products.clear()
    monkeypatch.delattr(functional, "grouped_mm")
    check(made(1, 20, 2, 3, 24, 40), "triton", "float32")
    assert asked == [18, 19, 20]


def test_no_token() -> None:
    hidden, ids = torch.zeros(0, 24).half(), torch.zeros(0, 2, dtype=torch.int64)
    assert prompt_experts.apply_to_prompt(hidden, ids, torch.zeros(0, 2), *experts(24, 40)).shape == (0, 24)
