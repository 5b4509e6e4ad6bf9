"""NaN and -inf among the biased scores; the rest is in `parity/test_routing`."""

import numpy as np

from zigzag.reference import route_experts

EVEN = np.zeros(6)


def test_nan_counts_as_the_lowest_and_ties_go_to_the_lower_id() -> None:
    assert route_experts(np.zeros(200), np.zeros(200), top_k=100)[0].tolist() == list(range(100))
    ids, weights = route_experts(np.zeros(3), np.array([np.nan, -np.inf, 1.0]), top_k=2)
    assert ids.tolist() == [2, 0] and weights.tolist() == [0.5, 0.5]


def test_nan_does_not_hide_the_rest_of_its_group() -> None:
    bias = np.array([np.nan, 5.0, 5.0, 1.0, 1.0, 1.0])
    assert route_experts(EVEN, bias, top_k=2, num_groups=2)[0].tolist() == [1, 2]
    assert route_experts(EVEN, bias, top_k=4, num_groups=2, top_groups=2)[0].tolist() == [1, 2, 3, 4]


def test_a_group_counts_by_its_two_best() -> None:
    """Three of 1 against 0.9 and 1.2: the sum of all three would say otherwise."""
    bias = np.array([1.0, 1.0, 1.0, 1.2, 0.9, -9.0])
    assert route_experts(EVEN, bias, top_k=2, num_groups=2)[0].tolist() == [3, 4]
    one_each = np.array([0.3, 0.1, 0.2])
    assert route_experts(np.zeros(3), one_each, top_k=2, num_groups=3, top_groups=2)[0].tolist() == [0, 2]


def test_weights_are_scores_without_the_bias() -> None:
    logits = np.array([0.0, np.log(3.0), 800.0, -800.0])  # 0.5, 0.75, 1 and 0
    ids, weights = route_experts(logits, np.array([9.0, 8.0, 0.0, 7.0]), top_k=3, normalize=False, scaling=2.0)
    assert ids.tolist() == [0, 1, 3]
    np.testing.assert_allclose(weights, [1.0, 1.5, 0.0], atol=1e-15)
    np.testing.assert_allclose(route_experts(logits, np.zeros(4), top_k=2)[1], [1 / 1.75, 0.75 / 1.75])
