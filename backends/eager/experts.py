"""`apply_experts`, computed in float32 or better and returned in the dtype of the hidden states.

Pairs of token and expert are taken a few at a time, with copies of their experts' weights: nothing waits for the
device.
"""

from collections.abc import Callable

from zigzag.backends.eager.arrays import Array, cast, compute_dtype, masked_fill, namespace, sigmoid

PAIRS = 8  # whose experts are copied at a time


def apply_experts(hidden: Array, expert_ids: Array, weights: Array, gate_up: Array, down: Array) -> Array:
    return weighted_sum(few_at_a_time, hidden, expert_ids, weights, gate_up, down)


def weighted_sum(
    networks: Callable[[Array, Array, Array, Array], Array],
    hidden: Array,
    expert_ids: Array,
    weights: Array,
    gate_up: Array,
    down: Array,
) -> Array:
    """`apply_experts` with the results of `networks(rows [N, M], ids [N], gate_up, down)`; an id of E has no expert."""
    xp, dtype = namespace(hidden), compute_dtype(hidden)
    (tokens, width), top_k, experts = hidden.shape, expert_ids.shape[1], gate_up.shape[0]
    ids = cast(expert_ids.reshape(-1), xp.int64)
    unknown = (ids < 0) | (ids >= experts)
    rows = xp.broadcast_to(cast(hidden, dtype)[:, None], (tokens, top_k, width)).reshape(-1, width)
    results = networks(rows, masked_fill(ids, unknown, experts), gate_up, down)
    weighted = cast(weights.reshape(-1, 1), dtype) * results
    weighted = masked_fill(weighted, unknown[:, None], 0)  # no product: NaN * 0 is NaN
    return cast(weighted.reshape(tokens, top_k, width).sum(axis=1), hidden.dtype)


def few_at_a_time(rows: Array, ids: Array, gate_up: Array, down: Array) -> Array:
    """Row n through expert ids[n]; the rows of an id without expert hold nothing of meaning."""
    results = [rows[:0]]
    for start in range(0, len(rows), PAIRS):
        some, own = rows[start : start + PAIRS, None], ids[start : start + PAIRS].clip(max=len(gate_up) - 1)
        results.append(network(some, cast(gate_up[own], rows.dtype), cast(down[own], rows.dtype))[:, 0])
    return namespace(rows).concatenate(results)


def network(rows: Array, gate_up: Array, down: Array) -> Array:
    """Rows [..., N, M] through one expert, gate_up [..., 2 I, M] and down [..., M, I]."""
    both, inner = rows @ gate_up.swapaxes(-1, -2), down.shape[-1]
    gate, up = both[..., :inner], both[..., inner:]
    return (gate * sigmoid(gate) * up) @ down.swapaxes(-1, -2)
