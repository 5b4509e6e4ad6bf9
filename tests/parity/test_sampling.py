"""`to_probs` and `sample` on every backend against the reference."""

import numpy as np
import pytest
from hypothesis import assume
from hypothesis import strategies as st

from zigzag import reference
from zigzag.conformance.arrays import convert, dtypes_of, kind_of, supports, to_numpy, widest
from zigzag.conformance.calls import called
from zigzag.conformance.drafts import is_inside
from zigzag.conformance.effort import drawn
from zigzag.conformance.judging import UNNAMED, judges
from zigzag.conformance.tolerance import assert_equal, same_shape


def check_to_probs(backend: str, dtype: str, logits: np.ndarray, options: dict) -> None:
    array = convert(logits, kind_of(backend), dtype)
    out = to_numpy(called("to_probs", backend, array, **options))
    exact = reference.to_probs(to_numpy(array), **options)
    same_shape(out, exact)
    assert np.array_equal(out > 0, exact > 0), (out, exact)
    np.testing.assert_allclose(out, exact, rtol=1e-12 if dtype == "float64" else 2e-5, equal_nan=True)


@judges(UNNAMED, "to_probs")
@pytest.mark.parametrize("judged", ["tolerance", "edges"])
def test_to_probs(judged: str, backend: str) -> None:
    supports(backend, "to_probs")
    drawn(backend, 60, lambda data: check_drawn_logits(backend, data, rubbish=judged == "edges"))


def check_drawn_logits(backend: str, data, *, rubbish: bool) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    shape = data.draw(st.sampled_from([(7,), (3, 9), (2, 1, 5), (2, 300)]))
    dtype = data.draw(st.sampled_from(dtypes_of(backend)))
    logits = rng.integers(-6, 7, shape) / 2  # many ties, exact in every dtype
    logits[rng.random(shape) < 0.2] = -np.inf
    if rubbish:
        logits[rng.random(shape) < 0.1] = rng.choice([np.nan, np.inf, -np.inf])
        logits.reshape(-1, shape[-1])[rng.random(logits.size // shape[-1]) < 0.2] = -np.inf
    options = {
        "temperature": data.draw(st.sampled_from([1.0, 0.5, 0.7, 2.0, 0.0])),
        "top_k": data.draw(st.sampled_from([0, 1, 2, 5, 500])),
        "top_p": data.draw(st.sampled_from([1.0, 0.9137, 0.5111, 0.0301])),
        "min_p": data.draw(st.sampled_from([0.0, 0.0713, 0.317])),
    }
    assume(is_filter_clear(logits, options, 1e-9 if dtype == "float64" else 1e-5))
    check_to_probs(backend, dtype, logits, options)


def is_filter_clear(logits: np.ndarray, options: dict, margin: float) -> bool:
    """Whether no token lies at the edge of top-p or min-p."""
    probs = reference.to_probs(logits, temperature=options["temperature"], top_k=options["top_k"])
    mass = np.cumsum(-np.sort(-probs, axis=-1), axis=-1)
    kept = reference.to_probs(
        logits, temperature=options["temperature"], top_k=options["top_k"], top_p=options["top_p"]
    )
    edge = kept - options["min_p"] * kept.max(axis=-1, keepdims=True)
    return not np.any(np.abs(mass - options["top_p"]) < margin) and not np.any(np.abs(edge[kept > 0]) < margin)


@judges("ties", "to_probs")
def test_to_probs_at_the_edge(backend: str) -> None:
    """Sums that are exact: a token with just top_p before it goes, the smaller id of a tie stays."""
    supports(backend, "to_probs")
    logits = np.log([[0.25, 0.25, 0.25, 0.25], [0.125, 0.5, 0.125, 0.25]])
    if widest(backend) != "float64":
        logits = logits[:1]  # the other logits are exact in no dtype
    for options in ({"top_p": 0.5}, {"top_p": 0.75}, {"top_k": 3}, {"min_p": 0.5}, {"temperature": 0.0}):
        check_to_probs(backend, widest(backend), logits, options)


@judges("edges", "to_probs")
@pytest.mark.parametrize("middle", [-1024.0, 1024.0])
def test_to_probs_of_far_logits(backend: str, middle: float) -> None:
    """Only their differences count; steps that every dtype can tell."""
    supports(backend, "to_probs")
    logits = middle + 8 * np.array([[0.0, 1.0, -1.0, 0.0, -2.0], [-1.0, -1.0, -1.0, 0.0, -1.0]])
    for dtype in dtypes_of(backend):
        for options in ({}, {"temperature": 2.0}, {"temperature": 8.0, "top_k": 2}, {"temperature": 4.0, "min_p": 0.1}):
            check_to_probs(backend, dtype, logits, options)


def check_sample(backend: str, dtype: str, weights: np.ndarray, uniforms: np.ndarray) -> None:
    kind = kind_of(backend)
    out = called("sample", backend, convert(weights, kind, dtype), convert(uniforms, kind, dtype))
    assert_equal(to_numpy(out), reference.sample(weights, uniforms))


@judges("edges", "sample")
def test_sample_of_exact_numbers(backend: str) -> None:
    """Also at the boundaries, with NaN, negative rubbish, and rows without weight."""
    supports(backend, "sample")
    drawn(backend, 40, lambda data: check_exact_weights(backend, data))


def check_exact_weights(backend: str, data) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    shape = data.draw(st.sampled_from([(3,), (2, 4), (3, 0), ()]))
    dtype = data.draw(st.sampled_from(dtypes_of(backend)))
    weights = rng.integers(0, 5, (*shape, data.draw(st.integers(1, 9)))) / 8
    weights[rng.random(weights.shape) < 0.3] = rng.choice([0.0, np.nan, -1.0])
    uniforms = np.array(rng.integers(0, 64, shape) / 64)
    check_sample(backend, dtype, weights, uniforms)


@judges("edges", "sample")
def test_sample_where_a_share_ends(backend: str) -> None:
    """Each uniform number is a cumulative sum, 0 among them; tokens without weight stand at both ends of a share."""
    supports(backend, "sample")
    weights, ends = np.array([0.0, 0.25, 0.0, 0.5, 0.0, 0.25, 0.0]), np.array([0.0, 0.25, 0.75, 0.75 + 2.0**-7])
    for dtype in dtypes_of(backend):
        for total in (1.0, 0.5, 4.0):  # rows need not sum to 1
            check_sample(backend, dtype, np.tile(total * weights, (len(ends), 1)), ends)


@judges("tokens", "sample")
def test_sample_of_any_numbers(backend: str) -> None:
    """In float32 a sum of 1000 weights may be off by a few of its roundings."""
    supports(backend, "sample")
    dtype = widest(backend)
    sizes, margin = ([1, 5, 1000, 49152], 1e-12) if dtype == "float64" else ([1, 5, 1000], 1e-6)

    def check(data) -> None:
        rng, size = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1))), data.draw(st.sampled_from(sizes))
        weights = rng.exponential(size=(3, size)) * (rng.random((3, size)) < 0.5)
        uniforms = rng.random(3)
        assume(all(is_inside(w, u, margin) for w, u in zip(weights, uniforms, strict=True)))
        check_sample(backend, dtype, weights, uniforms)

    drawn(backend, 40, check)


def test_sample_skips_tokens_without_weight() -> None:
    """Sums that a device adds up in another order may grow where the weight is 0: such a token is never drawn."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from zigzag.backends.eager.sampling import pick

    weights = torch.tensor([[0.5, 0.0, 0.5, 0.0]])
    uneven = torch.tensor([[0.5, 0.5000001, 0.9999999, 1.0]])
    for uniform in (0.50000005, 0.99999995):
        assert pick(weights.clone(), uneven.clone(), torch.tensor([uniform])).tolist() == [2]


def test_wrong_sampling_is_noticed(register) -> None:
    def unnormalised(logits, *, top_p=1.0, **options):
        return np.where(reference.to_probs(logits, top_p=top_p) > 0, reference.to_probs(logits), 0)

    def other_side(probs, uniforms):
        return reference.sample(probs[..., ::-1], uniforms)

    name = register(to_probs=unnormalised, sample=other_side)
    with pytest.raises(AssertionError):
        check_to_probs(name, "float64", np.array([0.0, 1.0, 2.0]), {"top_p": 0.5})
    with pytest.raises(AssertionError):
        check_sample(name, "float64", np.array([[0.25, 0.75]]), np.array([0.5]))
