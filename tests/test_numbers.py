"""NumPy's numbers are taken as the numbers that they are, and anything that is no number is refused, by every op."""

import json
from collections.abc import Callable
from fractions import Fraction
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from zigzag import reference
from zigzag.backends import lookup
from zigzag.ops import (
    attention,
    gated_attention,
    lost_mass,
    mixed_attention,
    ragged_attention,
    route_experts,
    to_probs,
    verify_lenient,
    verify_relaxed,
    verify_residual,
    verify_top_k,
    verify_typical,
    visible,
)
from zigzag.reference import assign_heads, assign_layers, best_tree, expected_tokens
from zigzag.reference.checks import as_real, as_whole
from zigzag.reference.errors import ZigzagError
from zigzag.reference.glm import GlmConfig
from zigzag.sizes.roofline import Case, Layout
from zigzag.sizes.shape import BUILT_IN, ModelShape, model_shape, streaming_plan

WHOLES = (np.int64, np.int32, np.int8, np.uint8, np.array)
REALS = (np.float64, np.float32, np.float16)


def test_whole_numbers() -> None:
    for kind in (int, *WHOLES):
        assert as_whole(kind(3)) == 3 and type(as_whole(kind(3))) is int
    for other in (True, np.bool_(True), 3.0, np.float64(3), "3", None, [3], np.array([3, 4]), 3 + 0j):
        assert as_whole(other) is None


def test_real_numbers() -> None:
    for kind in (float, int, Fraction, np.int8, *REALS):
        assert as_real(kind(2)) == 2 and type(as_real(kind(2))) is float
    assert np.isnan(as_real(float("nan")))  # a number of Python's; who asks looks at the range
    for other in (True, np.bool_(True), "3", None, [3.0], 3 + 0j):
        assert as_real(other) is None


RNG = np.random.default_rng(3)
Q, K, V = (RNG.normal(size=(1, 2, 9, 4)).astype(np.float32) for _ in range(3))
SCORES = RNG.random((40, 8))
IDS, UNIFORMS = np.array([[1, 2]]), np.full((1, 3), 0.3)
ROWS = reference.to_probs(RNG.normal(size=(1, 3, 8)))
HALF = {"draft_token_ids": IDS, "draft_probs": None, "target_probs": ROWS, "uniforms": UNIFORMS}
LOSSY = {"draft_token_ids": IDS, "target_probs": ROWS}

PAGED = {"query_starts": np.array([0, 9]), "lengths": np.array([9]), "block_table": np.array([[0]])}
# With whole numbers in `w` and real ones in `r`: given as w(4), r(0.5).
Taking = Callable[[Callable[[int], Any], Callable[[float], Any]], Any]
WITH_WHOLES: dict[str, Taking] = {
    "visible": lambda w, r: visible(np.arange(9), np.arange(9), sink=w(2), recent=w(4), align=w(2)),
    "attention": lambda w, r: attention(Q, K, V, sink=w(2), recent=w(4), align=w(2))[0],
    "gated_attention": lambda w, r: gated_attention(Q, K, V, np.ones(2), sink=w(1), recent=w(3)),
    "lost_mass": lambda w, r: lost_mass(Q, K, sink=w(1), recent=w(3)),
    "mixed_attention": lambda w, r: mixed_attention(
        Q, K[:, :1], V[:, :1], K[:, 1:], V[:, 1:], full_groups=[True, False], sink=w(1), recent=w(3)
    )[0],
    "ragged_attention": lambda w, r: ragged_attention(
        Q[0].swapaxes(0, 1), K, V, **PAGED, sink=w(1), recent=w(3), max_queries=w(9)
    )[0],
    "to_probs": lambda w, r: to_probs(ROWS, top_k=w(3)),
    "verify_top_k": lambda w, r: verify_top_k(**LOSSY, k=w(2)).output_token_ids,
    "verify_relaxed": lambda w, r: verify_relaxed(**LOSSY, top_n=w(3), delta=0.5).output_token_ids,
    "route_experts": lambda w, r: route_experts(
        SCORES, np.zeros(8), top_k=w(2), num_groups=w(4), top_groups=w(2)
    )[1],
    "assign_heads": lambda w, r: assign_heads(SCORES, w(100)),
    "assign_layers": lambda w, r: assign_layers(SCORES, w(20)),  # 20 x 8 heads are more than int8 holds
    "expected_tokens": lambda w, r: expected_tokens(0.5, w(100)),
    "best_tree": lambda w, r: best_tree([0.5, 0.25], w(4), depth=w(3))[1],
}  # fmt: skip
WITH_REALS: dict[str, Taking] = {
    "attention": lambda w, r: attention(Q, K, V, scale=r(0.25))[0],
    "lost_mass": lambda w, r: lost_mass(Q, K, sink=1, recent=3, scale=r(0.25)),
    "to_probs": lambda w, r: to_probs(ROWS, temperature=r(0.75), top_p=r(0.5), min_p=r(0.125)),
    "verify_residual": lambda w, r: verify_residual(**HALF, temperature=r(0.75)).output_token_ids,
    "verify_lenient": lambda w, r: verify_lenient(**HALF, lenience=r(0.5)).output_token_ids,
    "verify_typical": lambda w, r: (
        verify_typical(**LOSSY, uniforms=UNIFORMS, epsilon=r(0.125), delta=r(0.25)).output_token_ids
    ),
    "route_experts": lambda w, r: route_experts(SCORES, np.zeros(8), top_k=2, scaling=r(2.5))[1],
    "assign_layers": lambda w, r: assign_layers(SCORES, 3, gain=r(0.25)),
    "expected_tokens": lambda w, r: expected_tokens(r(0.75), 30),
}


def same(one: Any, other: Any) -> bool:
    return np.asarray(one).dtype == np.asarray(other).dtype and bool(np.array_equal(one, other))


def test_same_can_fail() -> None:
    assert not same(np.float32(1), np.float64(1)) and not same(1.0, 1.5) and same(1.0, 1.0)


@pytest.mark.parametrize("name", WITH_WHOLES)
def test_whole_numbers_of_numpy(name: str) -> None:
    call = WITH_WHOLES[name]
    plain = call(int, float)
    for kind in WHOLES:
        assert same(call(kind, float), plain), kind


@pytest.mark.parametrize("name", WITH_REALS)
def test_real_numbers_of_numpy(name: str) -> None:
    """Also the dtype: NumPy's float64 would widen float32, its float32 would round float64."""
    call = WITH_REALS[name]
    plain = call(int, float)
    for kind in REALS:
        assert same(call(int, kind), plain), kind


@pytest.mark.parametrize("name", WITH_WHOLES)
def test_what_is_no_whole_number(name: str) -> None:
    for wrong in (float, str, bool, lambda n: n + 0.5, lambda n: [n]):
        with pytest.raises(ZigzagError, match=r"whole number|integer"):
            WITH_WHOLES[name](wrong, float)


@pytest.mark.parametrize("name", WITH_REALS)
def test_what_is_no_real_number(name: str) -> None:
    for wrong in (str, bool, complex, lambda n: [n], lambda n: float("nan")):
        with pytest.raises(ZigzagError, match=r"must be"):
            WITH_REALS[name](int, wrong)


@pytest.mark.parametrize("call", [*WITH_WHOLES.values(), *WITH_REALS.values()])
def test_backends_get_plain_numbers(call: Taking, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those of others, and kernels, which take NumPy's for something else."""
    got: list[Any] = []

    def spying(op: str, backend: str, *arrays: Any, **wanted: Any) -> Any:
        def call_it(*args: Any, **options: Any) -> Any:
            got.extend(value for value in options.values() if value is not None)
            return lookup(op, backend, *arrays, **wanted)(*args, **options)

        return call_it

    for family in (
        "attention",
        "head_scores",
        "mixed_attention",
        "ragged_attention",
        "routing",
        "sampling",
        "verification",
    ):
        monkeypatch.setattr(import_module(f"zigzag.ops.{family}"), "lookup", spying)
    call(np.int64, np.float64)
    wrong = [value for value in got if isinstance(value, np.generic) or type(value) not in (int, float, bool, tuple)]
    assert not [value for value in wrong if not isinstance(value, np.ndarray) or value.ndim == 0]


def test_torch_gets_plain_numbers() -> None:
    """NumPy's numbers beside a torch tensor give arrays of NumPy, or another dtype."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    query, key, value = map(torch.from_numpy, (Q, K, V))
    plain = attention(query, key, value, sink=2, recent=4, align=2, scale=0.25)
    taken = attention(query, key, value, sink=np.int8(2), recent=np.int32(4), align=np.int64(2), scale=np.float64(0.25))
    assert all(torch.equal(a, b) and a.dtype is b.dtype for a, b in zip(taken, plain, strict=True))
    rows = torch.from_numpy(ROWS).float()
    given = {
        "temperature": np.float64(0.75),
        "top_k": np.int8(5),
        "top_p": np.float32(0.75),
        "min_p": np.float16(0.125),
    }
    plain_probs = to_probs(rows, temperature=0.75, top_k=5, top_p=0.75, min_p=0.125)
    assert to_probs(rows, **given).dtype is torch.float32 and torch.equal(to_probs(rows, **given), plain_probs)


@pytest.mark.parametrize("kind", [np.int64, np.int32])
def test_sizes(kind: Callable[[int], Any]) -> None:
    """Small kinds would run over: the bytes of a cache are beyond 2^31."""
    config = {key: kind(n) if type(n) is int else n for key, n in BUILT_IN["GLM-4.5-Air"].items()}
    taken, plain = ModelShape.from_config(config, "GLM-4.5-Air"), model_shape("GLM-4.5-Air")
    assert taken == plain and all(type(n) is not kind for n in vars(taken).values())
    plan = streaming_plan(plain, 0.5)
    sizes = {"context": 131_072, "batch": 16}
    given = {name: kind(n) for name, n in sizes.items()}
    assert plain.kv_bytes(plan, **given, itemsize=kind(2)) == plain.kv_bytes(plan, **sizes) > 2**31
    assert plain.prefill_flops(plan, **given) == plain.prefill_flops(plan, **sizes)
    case = Case(plain, plan, **given, kv_itemsize=kind(2), layout=Layout(kind(2), kind(4)))
    wanted = Case(plain, plan, **sizes, layout=Layout(2, 4))
    assert case == wanted and case.decode(kind(2)) == wanted.decode(2)
    assert case.memory_bytes(1) == wanted.memory_bytes(1) > 2**31


def test_glm_configuration() -> None:
    from zigzag.models import tiny_glm
    from zigzag.models.checkpoint import read_config

    config = read_config(tiny_glm.folder() / "config.json")
    given = {key: np.int64(n) if type(n) is int else n for key, n in config.items()}
    taken = GlmConfig.from_dict(given)
    assert taken == GlmConfig.from_dict(config)
    assert all(type(value) in (int, float, bool) for value in vars(taken).values())


def test_training_configuration() -> None:
    from zigzag.training.config import from_dict, named, read_config

    config = read_config(named("tiny-glm"))
    given = {key: np.int64(n) if type(n) is int else n for key, n in config.as_dict().items()}
    assert from_dict(given) == config
    assert json.loads(json.dumps(from_dict(given).as_dict())) == json.loads(json.dumps(config.as_dict()))
