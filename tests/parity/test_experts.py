"""`apply_experts` on every backend against the reference, against plain loops, and on bad arguments."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zigzag import ArgumentError, KindError, ops, reference
from zigzag.conformance import arrays
from zigzag.conformance.arrays import convert, dtypes_of, interpreted, kind_of, supports, to_numpy, widest
from zigzag.conformance.calls import called
from zigzag.conformance.effort import drawn
from zigzag.conformance.judging import judges
from zigzag.conformance.tolerance import assert_no_worse


@dataclass
class Tokens:
    """The arguments of `apply_experts`, as float64 and int64."""

    hidden: np.ndarray
    expert_ids: np.ndarray
    weights: np.ndarray
    gate_up: np.ndarray
    down: np.ndarray

    @property
    def arrays(self) -> list[np.ndarray]:
        return [self.hidden, self.expert_ids, self.weights, self.gate_up, self.down]

    @property
    def unused(self) -> list[int]:
        return [e for e in range(len(self.down)) if e not in self.expert_ids]


def made(seed: int, tokens: int, top_k: int, experts: int, width: int, inner: int, absent: float = 0.0) -> Tokens:
    """Normal numbers, a share of ids -1, NaN in every expert that no token names."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, experts, (tokens, top_k))
    ids[rng.random(ids.shape) < absent] = -1
    case = Tokens(
        rng.standard_normal((tokens, width)),
        ids,
        rng.standard_normal((tokens, top_k)),
        rng.standard_normal((experts, 2 * inner, width)) / width**0.5,
        rng.standard_normal((experts, width, inner)) / inner**0.5,
    )
    case.gate_up[case.unused] = case.down[case.unused] = np.nan
    return case


@st.composite
def cases(draw) -> Tokens:
    sizes = st.sampled_from([1, 3, 16, 17, 40])
    return made(
        draw(st.integers(0, 2**32 - 1)),
        draw(st.integers(0, 6)),
        draw(st.integers(1, 4)),
        draw(st.sampled_from([1, 2, 5, 30])),
        draw(sizes),
        draw(sizes),
        draw(st.sampled_from([0.0, 0.3, 1.0])),
    )


def by_hand(case: Tokens, rounded: Callable[[np.ndarray], np.ndarray] = lambda x: x) -> np.ndarray:
    """The definition once more, pair by pair; `rounded` rounds what is between the two products, and the result."""
    output = np.zeros_like(case.hidden)
    inner = case.down.shape[2]
    for token, x in enumerate(case.hidden):
        for expert, weight in zip(case.expert_ids[token], case.weights[token], strict=True):
            if expert >= 0:
                gate, up = case.gate_up[expert, :inner] @ x, case.gate_up[expert, inner:] @ x
                output[token] += case.down[expert] @ rounded(weight * gate / (1 + np.exp(-gate)) * up)
    return rounded(output)


def check(case: Tokens, backend: str, dtype: str) -> None:
    kind = kind_of(backend)
    placed = [convert(array, kind, dtype) for array in case.arrays]
    out = called("apply_experts", backend, *placed)
    hidden, _, weights, gate_up, down = (to_numpy(array) for array in placed)
    case = Tokens(hidden, case.expert_ids, weights, gate_up, down)
    naive = by_hand(case, lambda x: to_numpy(convert(x, kind, dtype)))
    terms = case.expert_ids.shape[1] * down.shape[2] + down.shape[1]
    assert_no_worse(to_numpy(out), reference.apply_experts(*case.arrays), naive, dtype=dtype, terms=terms)


@judges("tolerance", "apply_experts")
def test_parity(backend: str) -> None:
    supports(backend, "apply_experts")
    dtypes = st.sampled_from(dtypes_of(backend))
    drawn(backend, 60, lambda data: check(data.draw(cases()), backend, data.draw(dtypes)))


@given(case=cases())
def test_reference_is_the_definition(case: Tokens) -> None:
    assert np.allclose(reference.apply_experts(*case.arrays), by_hand(case), rtol=1e-12, atol=1e-12)


@judges("tolerance", "apply_experts")
@pytest.mark.parametrize("tokens", [1, 2, 16, 17])
def test_every_way_to_compute(backend: str, tokens: int) -> None:
    """One token, a tile of tokens, the fullest tile, more than a tile; each expert shared by some tokens."""
    supports(backend, "apply_experts")
    for dtype in dtypes_of(backend):
        check(made(tokens, tokens, 2, 5, 37, 21, 0.2), backend, dtype)


def crowd(seed: int, tokens: int = 20) -> Tokens:
    """Many tokens of a width that grouped products take, and no power of two: an expert that nobody names, ids -1, a
    token without an expert, one that names an expert twice."""
    case = made(seed, tokens, 3, 6, 24, 40, 0.2)
    case.expert_ids[case.expert_ids == 2] = 4
    case.expert_ids[:2] = [[5, 0, 5], [-1, -1, -1]]
    case.gate_up[:], case.down[:] = np.nan_to_num(case.gate_up, nan=1.0), np.nan_to_num(case.down, nan=1.0)
    case.gate_up[2] = case.down[2] = np.nan
    return case


@judges("tolerance", "apply_experts")
def test_many_tokens(backend: str) -> None:
    """As in prompts."""
    supports(backend, "apply_experts")
    for dtype in dtypes_of(backend):
        check(crowd(0), backend, dtype)


@judges("leaks", "apply_experts")
@pytest.mark.parametrize("expert", [0, 3, 5, -1])
def test_many_tokens_on_one_expert(backend: str, expert: int) -> None:
    """The first, one between, the last, none; infinities in the others."""
    supports(backend, "apply_experts")
    case = crowd(1)
    case.expert_ids[:] = expert
    case.gate_up[case.unused], case.down[case.unused] = np.inf, -np.inf
    check(case, backend, widest(backend))


@judges("shapes", "apply_experts")
@pytest.mark.parametrize("tokens", [1, 3])
def test_rows_in_blocks(backend: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles of rows and columns, the last ones not full."""
    supports(backend, "apply_experts")
    if interpreted(backend):  # a program has a few rows and columns instead of many
        from zigzag.backends.triton import experts as triton_experts

        small = triton_experts.Launch(rows=16, columns=16, warps=1, stages=2)
        monkeypatch.setattr(triton_experts, "ACTIVATE", (small, small))
        monkeypatch.setattr(triton_experts, "COMBINE", (small, small))
    width, inner = (50, 37) if interpreted(backend) else (1_100, 1_030)
    check(made(7, tokens, 3, 4, width, inner), backend, widest(backend))


@judges("edges", "apply_experts")
def test_no_expert_adds_nothing(backend: str) -> None:
    supports(backend, "apply_experts")
    case = made(0, 3, 2, 4, 5, 3, absent=1.0)
    case.weights[0] = np.nan
    out = called("apply_experts", backend, *(convert(a, kind_of(backend), "float32") for a in case.arrays))
    assert to_numpy(out).tolist() == [[0.0] * 5] * 3


@judges("edges", "apply_experts")
@pytest.mark.parametrize("times", [1, 5])
def test_without_validation_every_other_id_names_no_expert(backend: str, times: int) -> None:
    """Few tokens, and many."""
    if backend == "numpy":
        pytest.skip("the reference checks always")
    supports(backend, "apply_experts")
    case = made(1, 4 * times, 3, 3, 8, 4)
    others = np.tile([[3], [-2], [9], [2**40]], (times, 1))
    good = replace(case, expert_ids=np.where(np.arange(3) == 1, -1, case.expert_ids))
    bad = replace(case, expert_ids=np.where(np.arange(3) == 1, others, case.expert_ids))
    kind = kind_of(backend)
    one, other = (
        called("apply_experts", backend, *(convert(a, kind, "float32") for a in c.arrays), validate=False)
        for c in (good, bad)
    )
    assert np.array_equal(to_numpy(one), to_numpy(other))


@judges("leaks", "apply_experts")
@pytest.mark.parametrize(("tokens", "width", "inner"), [(2, 17, 9), (20, 17, 9), (20, 24, 8)])
def test_tokens_do_not_touch_each_other(backend: str, tokens: int, width: int, inner: int) -> None:
    """NaN in a token, and in an expert that only this token names, stay with it."""
    supports(backend, "apply_experts")
    case = made(2, tokens, 2, 6, width, inner)
    case.expert_ids[0], case.expert_ids[1:] = [5, 1], case.expert_ids[1:] % 5
    kind = kind_of(backend)

    def run(spoiled: Tokens) -> np.ndarray:
        return to_numpy(called("apply_experts", backend, *(convert(a, kind, "float32") for a in spoiled.arrays)))

    before = run(case)
    case.gate_up[5] = case.down[5] = np.nan
    by_expert = run(case)
    case.hidden[0] = np.nan
    for after in (by_expert, run(case)):
        assert np.isnan(after[0]).all() and np.isfinite(before).all()
        assert np.array_equal(after[1:], before[1:])


@judges("shapes", "apply_experts")
def test_narrow_ids_and_views(backend: str) -> None:
    """Ids as int32, and arrays that are slices of larger ones."""
    supports(backend, "apply_experts")
    kind, case = kind_of(backend), made(3, 6, 4, 1, 18, 10)
    ids = np.random.default_rng(0).integers(-1, 3, (6, 4)).astype(np.int32)
    case = replace(case, expert_ids=ids, gate_up=np.repeat(case.gate_up, 3, 0), down=np.repeat(case.down, 3, 0))
    case.gate_up[1], case.down[2] = -case.gate_up[1], 2 * case.down[2]
    hidden, ids, weights, gate_up, down = (convert(array, kind, "float32") for array in case.arrays)
    parts = [hidden[1:, ::2], ids[1:, ::2], weights[1:, 2:], gate_up[:, 1:13, 5:14], down[:, 3:12, 1:7]]
    exact = reference.apply_experts(to_numpy(parts[0]), case.expert_ids[1:, ::2], *map(to_numpy, parts[2:]))
    assert np.isfinite(exact).all()
    assert np.allclose(to_numpy(called("apply_experts", backend, *parts)), exact, rtol=1e-4, atol=1e-5)


def changed(case: Tokens, **arrays: np.ndarray) -> np.ndarray:
    return by_hand(replace(case, **arrays))


INNER = 3
WRONG: dict[str, Callable[[Tokens], np.ndarray]] = {
    "up before gate": lambda c: changed(c, gate_up=np.roll(c.gate_up, INNER, axis=1)),
    "gate and up interleaved": lambda c: changed(
        c, gate_up=np.concatenate([c.gate_up[:, ::2], c.gate_up[:, 1::2]], axis=1)
    ),
    "weights forgotten": lambda c: changed(c, weights=np.ones_like(c.weights)),
    "weights of another slot": lambda c: changed(c, weights=c.weights[:, ::-1]),
    "experts of another slot": lambda c: changed(c, expert_ids=c.expert_ids[:, ::-1]),
    "-1 is the last expert": lambda c: changed(c, expert_ids=c.expert_ids % len(c.down)),
    "first expert only": lambda c: changed(c, expert_ids=np.where(np.arange(3) == 0, c.expert_ids, -1)),
    "an expert counts once": lambda c: changed(
        c, expert_ids=np.array([[e if e not in row[:n] else -1 for n, e in enumerate(row)] for row in c.expert_ids])
    ),
    "NaN instead of nothing": lambda c: by_hand(c) + 0 * c.down[c.unused].sum(),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_experts_are_noticed(name: str, register) -> None:
    def apply_experts(hidden, expert_ids, weights, gate_up, down):
        return WRONG[name](Tokens(hidden, expert_ids, weights, gate_up, down))

    case = made(5, 4, 3, 4, 5, INNER)
    case.expert_ids[:] = [[0, 1, 0], [2, -1, 1], [1, 2, 0], [0, 2, 1]]
    case = replace(case, gate_up=np.nan_to_num(case.gate_up, nan=0.5), down=np.nan_to_num(case.down, nan=0.5))
    if name.startswith("NaN"):
        case.down[3] = np.nan
    check(case, "numpy", "float64")
    with pytest.raises(AssertionError):
        check(case, register(apply_experts=apply_experts), "float64")


GOOD = {
    "hidden": np.zeros((2, 5)),
    "expert_ids": np.zeros((2, 3), dtype=int),
    "weights": np.zeros((2, 3)),
    "gate_up": np.zeros((4, 12, 5)),
    "down": np.zeros((4, 5, 6)),
}
BAD = [
    ({"hidden": np.zeros(5)}, ArgumentError, r"hidden must have shape \[T, M\], got \[5\]"),
    ({"expert_ids": np.zeros((3, 3), dtype=int)}, ArgumentError, r"expert_ids must have shape .* T = 2, got \[3, 3\]"),
    ({"weights": np.zeros((2, 2))}, ArgumentError, r"weights must have shape \[T, k\] with k = 3, got \[2, 2\]"),
    ({"down": np.zeros((4, 6, 6))}, ArgumentError, r"down must have shape \[E, M, I\] with M = 5, got \[4, 6, 6\]"),
    ({"gate_up": np.zeros((4, 6, 5))}, ArgumentError, r"gate_up must have shape \[E, 12, M\] with 12 = 12, got"),
    ({"gate_up": np.zeros((3, 12, 5))}, ArgumentError, r"gate_up must have shape .* with E = 4, got \[3, 12, 5\]"),
    ({"gate_up": np.zeros((4, 12, 5), dtype=np.float32)}, KindError, "gate_up must be float64 like hidden, got float3"),
    ({"down": np.zeros((4, 5, 6), dtype=int)}, KindError, "down must be floating point, got int64"),
    ({"expert_ids": np.zeros((2, 3))}, KindError, "expert_ids must be integers, got float64"),
    ({"weights": np.zeros((2, 3), dtype=int)}, KindError, "weights must be floating point, got int64"),
    ({"expert_ids": np.full((2, 3), 4)}, ArgumentError, r"expert_ids must be in \[0, 4\), or -1 .* got 4 for token 0"),
    ({"expert_ids": np.array([[0, 1, 2], [0, -2, 0]])}, ArgumentError, ".* got -2 for token 1, slot 1"),
    ({"expert_ids": np.zeros((2, 0), dtype=int), "weights": np.zeros((2, 0))}, ArgumentError, "k must be at least 1"),
    ({"gate_up": np.zeros((0, 12, 5)), "down": np.zeros((0, 5, 6))}, ArgumentError, "E must be at least 1, got 0"),
]  # fmt: skip


@pytest.mark.parametrize("module", [ops, reference], ids=["front door", "reference"])
@pytest.mark.parametrize(("changes", "error", "words"), BAD)
def test_bad_arguments(module, changes: dict, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=f"^apply_experts: {words}"):
        module.apply_experts(**{**GOOD, **changes})


def test_arrays_of_two_kinds() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    tensors = {name: torch.from_numpy(array) for name, array in GOOD.items()}
    with pytest.raises(KindError, match="apply_experts: down must be a torch array like hidden"):
        ops.apply_experts(**{**tensors, "down": GOOD["down"]})


@judges("errors", "apply_experts")
def test_triton_says_what_it_cannot_do(backend: str) -> None:
    if backend != "triton":
        pytest.skip("its limits only")
    tensors = {name: convert(array, "torch", "float64") for name, array in GOOD.items()}
    with pytest.raises(KindError, match=r"triton takes hidden in float32, float16 or bfloat16, got torch\.float64"):
        called("apply_experts", backend, **tensors)
    tensors = {name: convert(array, "torch", "float32") for name, array in GOOD.items()}
    tensors["down"] = tensors["down"].mT.contiguous().mT
    with pytest.raises(ArgumentError, match=r"triton takes down with contiguous rows, got strides \(30, 1, 5\)"):
        called("apply_experts", backend, **tensors)


class Kept:
    """Stands for the second kernel and keeps what the first has written."""

    def __getitem__(self, grid):
        return self.keep

    def keep(self, act, down, plan, *rest, **options) -> None:
        self.act, self.plan = to_numpy(act), to_numpy(plan).astype(int)


@judges("tolerance", "apply_experts")
def test_triton_computes_each_expert_once(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the first pair (token, slot) that names it, for the tokens that name it, and for nobody else."""
    if backend != "triton":
        pytest.skip("its two kernels")
    from zigzag.backends.triton import experts as triton_experts

    monkeypatch.setattr(triton_experts, "combine", kept := Kept())
    case = made(0, 3, 3, 8, 5, 3)
    case.expert_ids[:] = [[7, 2, 7], [-1, 2, 5], [9, 5, 7]]
    case = replace(case, gate_up=np.nan_to_num(case.gate_up, nan=1), down=np.nan_to_num(case.down, nan=1))
    triton_experts.apply_experts(*(convert(array, "torch", "float32") for array in case.arrays))
    count, pairs, experts, tokens = kept.plan[0], *kept.plan[1:].reshape(3, 9)
    assert pairs[:count].tolist() == [0, 1, 5] and experts[:count].tolist() == [7, 2, 5]
    assert tokens[:count].tolist() == [0b101, 0b011, 0b110]
    written = np.isfinite(kept.act).all(-1)  # memory that nobody writes is NaN in these tests
    assert {pair: np.flatnonzero(row).tolist() for pair, row in enumerate(written) if row.any()} == {
        0: [0, 2],
        1: [0, 1],
        5: [1, 2],
    }


@judges("shapes", "apply_experts")
def test_triton_reaches_the_far_end(backend: str) -> None:
    """An expert that lies more than 2^31 elements behind the first."""
    if backend != "triton":
        pytest.skip("it counts elements itself")
    import torch

    step, case = 2**30 + 8, made(4, 2, 1, 1, width=5, inner=3)
    hidden, ids, weights, gate_up, down = (convert(array, "torch", "float16") for array in case.arrays)
    size = 2 * step + gate_up.numel()
    if arrays.DEVICE == "cpu":
        memory = torch.from_numpy(np.zeros(size, dtype=np.float16))  # what is never written takes no memory
    else:
        memory = torch.zeros(size, dtype=torch.float16, device=arrays.DEVICE)
    for tokens in (1, 2):
        exact = reference.apply_experts(
            case.hidden[:tokens], case.expert_ids[:tokens], case.weights[:tokens], case.gate_up, case.down
        )
        for far in ("gate_up", "down"):
            both = {"gate_up": gate_up.expand(3, -1, -1), "down": down.expand(3, -1, -1)}
            both[far] = memory.as_strided(both[far].shape, (step, both[far].shape[2], 1))
            both[far][2] = {"gate_up": gate_up, "down": down}[far][0]
            some = hidden[:tokens], ids[:tokens] + 2, weights[:tokens]
            out = to_numpy(ops.apply_experts(*some, **both, backend=backend))
            assert np.allclose(out, exact, rtol=1e-2, atol=1e-2) and np.abs(out).max() > 0.1


@judges("determinism", "apply_experts")
def test_triton_in_a_cuda_graph(backend: str) -> None:
    """Recorded once, replayed with other tokens and experts."""
    if backend != "triton" or arrays.DEVICE == "cpu":
        pytest.skip("there is a CUDA graph on a GPU only: pytest --backend triton --device cuda")
    import torch

    for tokens in (1, 5):
        first, second = (made(seed, tokens, 3, 4, 70, 50) for seed in (0, 1))
        placed = [convert(array, "torch", "float32") for array in first.arrays]
        ops.apply_experts(*placed, backend=backend)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = ops.apply_experts(*placed, backend=backend, validate=False)
        for held, array in zip(placed, second.arrays, strict=True):
            held.copy_(torch.from_numpy(array))
        graph.replay()
        assert np.allclose(to_numpy(out), reference.apply_experts(*second.arrays), rtol=1e-3, atol=1e-3)
