"""The CuPy backend's array code beyond parity: signatures, dtypes, no waiting, blocks, how the backend is found.

Parity with the reference is the parity suite's, where this code runs on NumPy arrays as the backend `cupy-on-numpy`.
"""

import re

import numpy as np
import pytest
from test_cupy_kernels import fake
from test_same_signature import disagreements

import zigzag
from zigzag import backends, reference
from zigzag.backends import cupy as cupy_ops
from zigzag.backends import registry
from zigzag.backends.eager import attention as eager_attention
from zigzag.backends.eager import sampling as eager_sampling

RNG = np.random.default_rng(0)
DTYPES = ("float16", "float32", "float64")


def test_every_op_with_the_reference_signature() -> None:
    assert [op for op in reference.OPS if not hasattr(cupy_ops, op)] == []
    assert disagreements(reference, cupy_ops) == []
    assert sorted(cupy_ops.__all__) == sorted(reference.OPS)


def calls(dtype: str, ragged: bool = True, deterministic: bool = False) -> dict[str, tuple[tuple, list[dict]]]:
    """For each op that stays on the device: its arrays, and sets of options."""
    states = [RNG.standard_normal((2, heads, 9, 4)).astype(dtype) for heads in (4, 2, 2)]
    at = np.maximum(np.arange(9) - np.array([[0], [3]]), -1)
    window = {"sink": 2, "recent": 3}
    places = [{}, {"query_positions": at, "key_positions": at}, {"parents": [-1, 0, 0]}]
    masks = [{**window, **where} for where in places]
    two_caches = [{**mask, "full_groups": (True, False)} for mask in masks]
    two_caches[1]["streaming_positions"] = at
    ids = np.array([[1, 2, 0, 3], [0, 0, -1, -1]])
    draft, target = (RNG.dirichlet(np.ones(6), (2, rows)).astype(dtype) for rows in (4, 5))
    draft, uniforms = None if deterministic else draft, RNG.random((2, 5)).astype(dtype)
    experts = [RNG.standard_normal(shape).astype(dtype) for shape in ((9, 2), (3, 10, 4), (3, 4, 5))]
    rest = {"num_draft_tokens": np.array([4, 2])} if ragged else {}
    chain, drawn = [{**rest, "temperature": t} for t in (None, 0.5, 0.0)], (ids, draft, target, uniforms)
    trees = [{**rest, "parents": parents} for parents in ([-1, 0, 1, 2], [-1, -1, 0, 0], [-1] * 4)]
    rows = {"query_starts": np.array([0, 1, 9]), "lengths": np.array([7, 9]), "block_table": np.array([[1], [0]])}
    filters = {"temperature": 0.5, "top_k": 4, "top_p": 0.8, "min_p": 0.1}
    return {
        "visible": ((at, at), [{}, window, {**window, "recent": 4, "align": 2}, {"parents": [-1, 0]}]),
        "attention": (tuple(states), [*places, *masks]),
        "merge": ((np.stack([states[0]] * 3), RNG.standard_normal((3, 2, 4, 9)).astype(dtype)), [{}]),
        "gated_attention": ((*states, np.array([0.5, 1], dtype=dtype)), masks),
        "mixed_attention": ((states[0], *(s[:, h : h + 1] for h in (0, 1) for s in states[1:])), two_caches),
        "ragged_attention": ((states[0][0].swapaxes(0, 1), *states[1:]), [rows, {**rows, **window}]),
        "lost_mass": (tuple(states[:2]), masks),
        "output_deviation": (tuple(states), masks),
        "gate_gradient": ((*states, states[0]), masks),
        "to_probs": ((target,), [{}, filters, {"temperature": 0.0}]),
        "sample": ((target, uniforms), [{}]),
        "verify_greedy": ((ids, target), [rest]),
        "verify_residual": (drawn, chain),
        "verify_block": (drawn, chain),
        "verify_exact": ((ids, target, uniforms), chain),
        "verify_typical": ((ids, target, uniforms), chain),
        "verify_relaxed": ((ids, target), chain),
        "verify_top_k": ((ids, target), [{**options, "k": 2} for options in chain]),
        "verify_lenient": (drawn, [{**options, "lenience": 0.5} for options in chain]),
        "verify_tree_greedy": ((ids, target), trees),
        "verify_tree_residual": (drawn, [*trees, *({**options, "replacement": False} for options in trees)]),
        "verify_tree_traversal": (drawn, [*trees, *({**options, "replacement": False} for options in trees)]),
        "verify_tree_k_seq": (drawn, trees),
        "apply_experts": ((states[0][0, 0], np.arange(18).reshape(9, 2) % 4 - 1, *experts), [{}]),
        "route_experts": ((target, target[0, 0]), [{"top_k": 2}, {"top_k": 2, "num_groups": 3, "top_groups": 2}]),
    }


def test_calls_cover_every_op_but_assignment() -> None:
    assert {*calls("float32"), "assign_heads", "assign_layers"} == set(reference.OPS)


LEAST_FLOAT32 = ("to_probs", "route_experts")


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype: str) -> None:
    """The query's dtype, an lse of at least float32, probabilities of at least float32, whole numbers int64."""
    wide = "float64" if dtype == "float64" else "float32"
    for op, (arrays, all_options) in calls(dtype).items():
        for options in all_options:
            with np.errstate(all="ignore"):
                out = getattr(cupy_ops, op)(*arrays, **options)
            found = [str(part.dtype) for part in (out if isinstance(out, tuple) else (out,)) if part is not None]
            if op in ("attention", "merge", "mixed_attention", "ragged_attention"):
                assert found == [dtype, wide], op
            elif op == "visible":
                assert found == ["bool"]
            else:
                plain = wide if op in LEAST_FLOAT32 else dtype
                assert set(found) <= {plain, "int64"} and (plain in found) is (not op.startswith(("verify", "sample")))


class WaitsError(Exception):
    pass


READS = "item tolist tobytes nonzero compress".split()
SIZES = "nonzero flatnonzero argwhere unique extract compress array_equal allclose".split()


class Watched(np.ndarray):
    """A NumPy array that raises where a CuPy array would wait for the device, or have a size that depends on values."""

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        return watched(getattr(ufunc, method)(*plain(inputs), **plain(options)))

    def __array_function__(self, function, types, arguments, options):
        if function.__name__ in SIZES or (function.__name__ == "where" and len(arguments) == 1):
            raise WaitsError(function.__name__)
        return watched(function(*plain(arguments), **plain(options)))

    def __getitem__(self, key):
        keys = key if isinstance(key, tuple) else (key,)
        if any(str(getattr(k, "dtype", "")) == "bool" for k in keys):
            raise WaitsError("mask")
        return watched(plain(self)[plain(key)])

    def __getattribute__(self, name):
        if name in READS:
            raise WaitsError(name)
        return super().__getattribute__(name)


def _raises(self, *arguments):
    raise WaitsError


for _method in "__bool__ __int__ __float__ __index__ __contains__ __iter__".split():
    setattr(Watched, _method, _raises)


def plain(given):
    if isinstance(given, dict):
        return {name: plain(value) for name, value in given.items()}
    if isinstance(given, (tuple, list)):
        return type(given)(plain(value) for value in given)
    return np.ndarray.view(given, np.ndarray) if isinstance(given, Watched) else given


def watched(given):
    if isinstance(given, (tuple, list)):
        return type(given)(watched(value) for value in given)
    return np.asarray(given).view(Watched) if isinstance(given, (np.ndarray, np.generic)) else given


@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize("deterministic", [False, True], ids=["drawn", "deterministic"])
def test_no_op_waits(ragged: bool, deterministic: bool) -> None:
    for op, (arrays, all_options) in calls("float32", ragged, deterministic).items():
        for options in all_options:
            placed = {n: watched(v) if isinstance(v, np.ndarray) else v for n, v in options.items()}
            with np.errstate(all="ignore"):
                out = getattr(cupy_ops, op)(*watched(arrays), **placed)
            parts = [part for part in (out if isinstance(out, tuple) else (out,)) if part is not None]
            assert all(isinstance(part, Watched) for part in parts), op


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.tolist(),
        lambda x: x[x > 0],
        lambda x: x[x > 0, None],
        lambda x: np.where(x > 0),
        lambda x: np.nonzero(x),
        lambda x: x.nonzero(),
        lambda x: int(x[0]),
        lambda x: float(x.max()),
        lambda x: range(x[0]),
        lambda x: list(x),
        lambda x: 1 in x,
        lambda x: np.unique(x),
    ],
    ids="item bool tolist mask masks where nonzero method int float index iterate in unique".split(),
)
def test_waiting_is_noticed(waits) -> None:
    with pytest.raises(WaitsError):
        waits(watched(np.arange(1, 4)))


def test_long_inputs_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A score matrix above the limit is taken in blocks of queries, with the same result."""
    query, key, value = (RNG.standard_normal((1, heads, 50, 8)) for heads in (4, 2, 2))
    whole = *cupy_ops.attention(query, key, value), cupy_ops.lost_mass(query, key, sink=2, recent=3)
    blocks = []
    scores_of = eager_attention.scores_of
    monkeypatch.setattr(eager_attention, "MAX_SCORES", 4 * 50 * 7)
    monkeypatch.setattr(eager_attention, "scores_of", lambda q, *rest: blocks.append(q.shape[2]) or scores_of(q, *rest))
    with np.errstate(divide="ignore"):
        parts = *cupy_ops.attention(query, key, value), cupy_ops.lost_mass(query, key, sink=2, recent=3)
    assert blocks == [7] * 7 + [1]
    for part, one in zip(parts, whole, strict=True):
        np.testing.assert_allclose(part, one, rtol=1e-12, atol=1e-12)


def test_a_streaming_prompt_is_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scores of a prompt grow with T * (sink + recent + block), never with T * T."""
    sizes, softmax = [], eager_attention.softmax
    monkeypatch.setattr(eager_attention, "softmax", lambda s, *rest: sizes.append(s.size) or softmax(s, *rest))
    for length in (1000, 2000):
        states = RNG.standard_normal((1, 1, length, 2))
        with np.errstate(divide="ignore"):
            cupy_ops.attention(states, states, states, sink=4, recent=60)
    assert sizes == [1024 * 192, 2048 * 192]


def test_draws_skip_tokens_without_weight() -> None:
    """Sums that a device adds up in another order may grow where the weight is 0: such a token is never drawn."""
    weights, uneven = np.array([[0.5, 0.0, 0.5, 0.0]]), np.array([[0.5, 0.5000001, 0.9999999, 1.0]])
    for uniform in (0.50000005, 0.99999995):
        assert eager_sampling.pick(weights.copy(), uneven.copy(), np.array([uniform])).tolist() == [2]


def test_missing_cupy_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    with pytest.raises(zigzag.BackendError, match=r"needs 'cupy', .* pip install cupy-cuda12x or cupy-cuda13x"):
        backends.get_backend("cupy")


def test_cupy_arrays_choose_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda name: object())
    monkeypatch.setattr(cupy_ops, "unavailable", lambda: "")
    assert backends.lookup("attention", "auto", fake(1)) is cupy_ops.attention
    with pytest.raises(zigzag.BackendError, match=r"'cupy' .* takes cupy arrays, got a numpy array"):
        backends.lookup("attention", "cupy", np.zeros(1))


@pytest.mark.parametrize(("count", "words"), [(1, ""), (0, "no CUDA device"), (None, "no CUDA device .*driver")])
def test_a_gpu_is_needed(count: int | None, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Runtime:
        CUDARuntimeError = OSError

        @staticmethod
        def getDeviceCount() -> int:
            if count is None:
                raise OSError("driver version is insufficient")
            return count

    fake_cupy = type("Cupy", (), {"cuda": type("Cuda", (), {"runtime": Runtime})})
    monkeypatch.setattr(cupy_ops, "import_module", lambda name: fake_cupy)
    reason = cupy_ops.unavailable()
    assert re.fullmatch(words and f".*{words}.*", reason)


@pytest.mark.parametrize("name", ["cupy-on-numpy", "torch"])
def test_of_long_prompts_under_sinks_alone_unseen_nan_stays_unseen(name: str) -> None:
    """Blocks of queries have keys of their own block before them, which under sinks alone nobody sees."""
    if name == "torch":
        pytest.importorskip("torch", reason="torch is not installed")
    query, key, value = RNG.standard_normal((3, 1, 2, 300, 4))
    expected = reference.attention(query, key, value, sink=1, recent=0)
    key[:, :, 1:], value[:, :, 1:] = np.nan, np.nan
    arrays = [query, key, value]
    if name == "torch":
        import torch

        arrays = [torch.from_numpy(array) for array in arrays]
    output, lse = zigzag.ops.attention(*arrays, sink=1, recent=0, backend=name)
    np.testing.assert_allclose(np.asarray(output), expected[0], rtol=1e-12)
    np.testing.assert_allclose(np.asarray(lse), expected[1], rtol=1e-12)
