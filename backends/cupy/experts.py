"""`apply_experts` as array calls: pairs of token and expert, a few at a time, with copies of their experts' weights."""

from zigzag.backends.cupy.arrays import Array, compute_dtype, namespace

PAIRS = 8  # whose experts are copied at a time


def apply_experts(hidden: Array, expert_ids: Array, weights: Array, gate_up: Array, down: Array) -> Array:
    xp, dtype = namespace(hidden), compute_dtype(hidden)
    (tokens, width), top_k, experts = hidden.shape, expert_ids.shape[1], gate_up.shape[0]
    ids = expert_ids.reshape(-1)
    known = (ids >= 0) & (ids < experts)
    rows, ids = xp.repeat(hidden.astype(dtype), top_k, axis=0), xp.where(known, ids, 0)
    results = xp.empty(rows.shape, dtype=dtype)
    for start in range(0, len(rows), PAIRS):
        some = slice(start, start + PAIRS)
        results[some] = _network(rows[some], gate_up[ids[some]].astype(dtype), down[ids[some]].astype(dtype))
    weighted = xp.where(known[:, None], weights.reshape(-1, 1).astype(dtype) * results, 0)  # NaN * 0 would be NaN
    return weighted.reshape(tokens, top_k, width).sum(axis=1).astype(hidden.dtype)


def _network(rows: Array, gate_up: Array, down: Array) -> Array:
    """Row n [N, M] through expert n of gate_up [N, 2 I, M] and down [N, M, I]."""
    xp, inner = namespace(rows), down.shape[2]
    both = (gate_up @ rows[..., None])[..., 0]
    gate, up = both[:, :inner], both[:, inner:]
    return (down @ (gate / (1 + xp.exp(-gate)) * up)[..., None])[..., 0]
