"""`route_experts` on every backend against the reference, against a plain loop, and on bad arguments."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zigzag import ArgumentError, KindError, ops, reference
from zigzag.conformance.arrays import convert, dtypes_of, kind_of, supports, to_numpy
from zigzag.conformance.calls import called
from zigzag.conformance.effort import drawn
from zigzag.conformance.judging import judges, judging
from zigzag.conformance.tolerance import assert_equal, assert_no_worse

LOGITS = [-60.0, -2.5, -0.75, 0.0, 0.5, 1.25, 3.0]  # exact in every dtype; few, so that ties are common
BIASES = [-0.375, 0.0, 0.0, 0.25, 4.0]
MARGIN = 1e-4  # selection values that are closer without being equal are left to rounding


@dataclass
class Tokens:
    """router_logits [T, E], bias [E] and the options of `route_experts`."""

    logits: np.ndarray
    bias: np.ndarray
    options: dict

    @property
    def groups(self) -> np.ndarray:
        """[num_groups, E / num_groups] expert ids."""
        return np.arange(len(self.bias)).reshape(self.options["num_groups"], -1)

    def row(self, token: int) -> list[tuple[float, float, float]]:
        """(selection value, logit, bias) of each expert."""
        row = self.logits[token]
        return [(1 / (1 + np.exp(-x)) + b, x, b) for x, b in zip(row, self.bias, strict=True)]


def is_clear(tokens: Tokens, token: int) -> bool:
    """Whether rounding cannot change the choice: selection values are equal in every arithmetic, or far apart."""
    experts = tokens.row(token)
    best = [sorted((experts[e] for e in group), reverse=True)[:2] for group in tokens.groups]
    groups = [(sum(value for value, _, _ in two), *sorted(two)) for two in best]
    for things in (experts, groups):
        ordered = sorted(things)
        if any(one[1:] != two[1:] and abs(two[0] - one[0]) < MARGIN for one, two in pairwise(ordered)):
            return False
    return True


@st.composite
def routings(draw) -> Tokens:
    num_groups = draw(st.sampled_from([1, 4]))
    experts = num_groups * draw(st.integers(1, 4))
    top_groups = draw(st.integers(1, num_groups))
    top_k = draw(st.integers(1, top_groups * experts // num_groups))
    options = {"top_k": top_k, "num_groups": num_groups, "top_groups": top_groups}
    options |= {"normalize": draw(st.booleans()), "scaling": draw(st.sampled_from([1.0, 2.5]))}
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    made = Tokens(rng.choice(LOGITS, (6, experts)), rng.choice(BIASES, experts), options)
    made.logits = made.logits[[token for token in range(6) if is_clear(made, token)]]
    return made


def by_hand(tokens: Tokens) -> tuple[list[list[int]], list[list[float]]]:
    """The definition once more, with sorted lists."""
    all_ids, all_weights = [], []
    for token in range(len(tokens.logits)):
        values = [value for value, _, _ in tokens.row(token)]
        strength = [sum(sorted(values[e] for e in group)[-2:]) for group in tokens.groups]
        kept = sorted(range(len(strength)), key=lambda g: (-strength[g], g))[: tokens.options["top_groups"]]
        usable = [e for g in kept for e in tokens.groups[g]]
        ids = sorted(usable, key=lambda e: (-values[e], e))[: tokens.options["top_k"]]
        weights = [1 / (1 + np.exp(-tokens.logits[token][e])) for e in ids]
        total = sum(weights) + 1e-20 if tokens.options["normalize"] else 1.0
        all_ids.append([int(e) for e in ids])
        all_weights.append([w / total * tokens.options["scaling"] for w in weights])
    return all_ids, all_weights


def check(tokens: Tokens, backend: str, dtype: str) -> None:
    kind = kind_of(backend)
    logits, bias = convert(tokens.logits, kind, dtype), convert(tokens.bias, kind, "float32")
    expert_ids, weights = called("route_experts", backend, logits, bias, **tokens.options)
    true_ids, true_weights = reference.route_experts(tokens.logits, tokens.bias, **tokens.options)
    with judging("tokens"):
        assert_equal(to_numpy(expert_ids), true_ids)
    plain = "float64" if dtype == "float64" else "float32"
    naive = to_numpy(convert(true_weights, kind, plain))
    assert_no_worse(to_numpy(weights), true_weights, naive, dtype=plain, terms=tokens.options["top_k"])


@judges("tolerance", "route_experts")
def test_parity(backend: str) -> None:
    supports(backend, "route_experts")
    dtypes = st.sampled_from(dtypes_of(backend))
    drawn(backend, 60, lambda data: check(data.draw(routings()), backend, data.draw(dtypes)))


@given(tokens=routings())
def test_reference_is_the_definition(tokens: Tokens) -> None:
    expert_ids, weights = reference.route_experts(tokens.logits, tokens.bias, **tokens.options)
    ids_by_hand, weights_by_hand = by_hand(tokens)
    assert expert_ids.tolist() == ids_by_hand
    assert np.allclose(weights.ravel(), np.ravel(weights_by_hand), rtol=1e-14, atol=0)


@judges("edges", "route_experts")
def test_bias_changes_the_choice_and_no_weight(backend: str) -> None:
    """A large bias forces an expert in, and it still gets the weight of its own score."""
    supports(backend, "route_experts")
    drawn(backend, 40, lambda data: check_forced(backend, data))


def check_forced(backend: str, data) -> None:
    tokens = data.draw(routings())
    forced = data.draw(st.integers(0, len(tokens.bias) - 1))
    bias = np.where(np.arange(len(tokens.bias)) == forced, 100.0, 0.0)
    kind, options = kind_of(backend), {**tokens.options, "normalize": False, "scaling": 1.0}
    logits = convert(tokens.logits, kind, "float32")
    expert_ids, weights = called("route_experts", backend, logits, convert(bias, kind, "float32"), **options)
    assert np.all(to_numpy(expert_ids)[:, 0] == forced)
    scores = 1 / (1 + np.exp(-tokens.logits[:, forced]))
    assert np.allclose(to_numpy(weights)[:, 0], scores, rtol=1e-6, atol=0)


@judges("ties", "route_experts")
def test_ties_go_to_the_lower_id(backend: str) -> None:
    supports(backend, "route_experts")
    kind = kind_of(backend)
    zeros, bias = convert(np.zeros((3, 160)), kind, "float32"), convert(np.zeros(160), kind, "float32")
    for options in ({}, {"num_groups": 4, "top_groups": 2}):
        expert_ids, _ = called("route_experts", backend, zeros, bias, top_k=8, **options)
        assert to_numpy(expert_ids).tolist() == [list(range(8))] * 3


@judges("edges", "route_experts")
def test_other_groups_stay_out_where_all_is_negative(backend: str) -> None:
    """Selection values below 0 in the best groups: what stands for the other groups must be lower still."""
    supports(backend, "route_experts")
    logits = np.array([[0.5, 0.5, -2.5, 3.0, 1.25, 1.25, 0.0, 0.0]] * 2)
    options = {"top_k": 3, "num_groups": 4, "top_groups": 2, "normalize": False, "scaling": 1.0}
    check(Tokens(logits, np.full(8, -4.0), options), backend, dtypes_of(backend)[0])


@judges("shapes", "route_experts")
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)], ids=str)
def test_any_leading_shape(backend: str, shape: tuple[int, ...]) -> None:
    supports(backend, "route_experts")
    kind = kind_of(backend)
    logits = convert(np.random.default_rng(0).standard_normal((*shape, 8)), kind, "float32")
    bias = convert(np.zeros(8), kind, "float32")
    expert_ids, weights = called("route_experts", backend, logits, bias, top_k=3, num_groups=4, top_groups=2)
    assert tuple(expert_ids.shape) == tuple(weights.shape) == (*shape, 3)


@judges("edges", "route_experts")
def test_nan_is_chosen_last(backend: str) -> None:
    supports(backend, "route_experts")
    kind = kind_of(backend)
    logits = convert(np.array([[np.nan, 1.0, -5.0], [np.nan, np.nan, 1.0]]), kind, "float32")
    bias = convert(np.zeros(3), kind, "float32")
    expert_ids, weights = called("route_experts", backend, logits, bias, top_k=2)
    assert to_numpy(expert_ids).tolist() == [[1, 2], [2, 0]]
    assert np.isfinite(to_numpy(weights)[0]).all() and np.isnan(to_numpy(weights)[1]).all()


def wrong_weights(logits, bias, **options):
    """The classic porting error: the biased score becomes the weight."""
    expert_ids, _ = reference.route_experts(logits, bias, **options)
    weights = np.take_along_axis(1 / (1 + np.exp(-logits)) + bias, expert_ids, axis=-1)
    total = weights.sum(-1, keepdims=True) if options["normalize"] else 1.0
    return expert_ids, weights / total * options["scaling"]


def wrong_ties(logits, bias, **options):
    """The higher id first."""
    expert_ids, weights = reference.route_experts(logits[..., ::-1], bias[::-1], **options)
    return logits.shape[-1] - 1 - expert_ids, weights


def changed(name: str, value, logits, bias, **options):
    return reference.route_experts(logits, bias, **{**options, name: value})


TOKENS = Tokens(
    np.array([[1.25, -0.75, 0.0, 0.5, 3.0, 3.0, -2.5, 0.5], [3.0, 0.5, -2.5, 1.25, *[-2.5] * 4], [0.0] * 8]),
    np.array([0.25, 0.0, 0.0, 0.25, 0.0, 0.0, -0.375, 0.0]),
    {"top_k": 2, "num_groups": 4, "top_groups": 2, "normalize": True, "scaling": 2.5},
)
WRONG: dict[str, Callable] = {
    "bias in the weights": wrong_weights,
    "ties to the higher id": wrong_ties,
    "no groups": lambda logits, bias, **options: reference.route_experts(
        logits, bias, **{**options, "num_groups": 1, "top_groups": 1}
    ),
    "scaling forgotten": partial(changed, "scaling", 1.0),
    "not normalised": partial(changed, "normalize", False),
    "bias ignored": lambda logits, bias, **options: reference.route_experts(logits, bias * 0, **options),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_routing_is_noticed(name: str, register) -> None:
    check(TOKENS, "numpy", "float64")
    with pytest.raises(AssertionError):
        check(TOKENS, register(route_experts=WRONG[name]), "float64")


def test_unclear_rows_are_seen() -> None:
    close = Tokens(np.array([[0.5, 0.5 + 1e-6], [0.5, 0.5], [0.5, 3.0]]), np.zeros(2), {"num_groups": 1})
    assert [is_clear(close, token) for token in range(3)] == [False, True, True]


E8 = {"router_logits": np.zeros((2, 8)), "bias": np.zeros(8), "top_k": 2}
BAD = [
    ({"router_logits": np.zeros((2, 0))}, ArgumentError, r"router_logits must have shape .* got \[2, 0\]"),
    ({"router_logits": np.array(0.0)}, ArgumentError, r"router_logits must have shape .* got \[\]"),
    ({"router_logits": np.zeros((2, 8), dtype=int)}, KindError, "router_logits must be floating point, got int64"),
    ({"bias": np.zeros(8, dtype=int)}, KindError, "bias must be floating point, got int64"),
    ({"bias": np.zeros(7)}, ArgumentError, r"bias must have shape \[E\] with E = 8, got \[7\]"),
    ({"bias": np.zeros((1, 8))}, ArgumentError, r"bias must have shape \[E\], got \[1, 8\]"),
    ({"top_k": 0}, ArgumentError, "top_k must be a whole number of at least 1, got 0"),
    ({"top_k": 9}, ArgumentError, "top_k must be at most 8, .* got 9"),
    ({"top_k": 3, "num_groups": 4}, ArgumentError, "top_k must be at most 2, the experts in 1 groups, got 3"),
    ({"num_groups": 3}, ArgumentError, "num_groups must divide the E = 8 experts, got 3"),
    ({"num_groups": True}, ArgumentError, "num_groups must be a whole number .* got True"),
    ({"num_groups": 2, "top_groups": 3}, ArgumentError, "top_groups must be at most num_groups = 2, got 3"),
    ({"normalize": "yes"}, KindError, "normalize must be True or False, got 'yes'"),
    ({"scaling": np.nan}, ArgumentError, "scaling must be a finite number, got nan"),
]


@pytest.mark.parametrize("module", [ops, reference], ids=["front door", "reference"])
@pytest.mark.parametrize(("changes", "error", "words"), BAD)
def test_bad_arguments(module, changes: dict, error: type[Exception], words: str) -> None:
    arguments = {**E8, **changes}
    logits, bias = arguments.pop("router_logits"), arguments.pop("bias")
    with pytest.raises(error, match=f"^route_experts: {words}"):
        module.route_experts(logits, bias, **arguments)


def test_arrays_of_two_kinds() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    with pytest.raises(KindError, match="route_experts: bias must be a torch array like router_logits"):
        ops.route_experts(torch.zeros(2, 8), np.zeros(8), top_k=2)
