"""The ops in plain PyTorch: CPU and CUDA tensors, any float dtype, no loop over batch, heads or tokens.

Half precision is computed in float32 and returned in the query's dtype. A full score matrix is never
larger than `MAX_SCORES` elements: longer inputs are taken in blocks of queries. Streaming attention over
contiguous positions (a prompt from its start) costs T * (sink + recent + block) instead of T * T.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from zigzag.backends.torch.experts import apply_experts  # noqa: F401  (ops of this backend, as the next four)
from zigzag.backends.torch.routing import route_experts  # noqa: F401
from zigzag.backends.torch.sampling import sample, to_probs  # noqa: F401
from zigzag.backends.torch.tree_verification import verify_tree_greedy, verify_tree_k_seq, verify_tree_residual  # noqa: F401
from zigzag.backends.torch.verification import (  # noqa: F401
    verify_block,
    verify_exact,
    verify_greedy,
    verify_lenient,
    verify_relaxed,
    verify_residual,
    verify_top_k,
    verify_typical,
)
from zigzag.reference import assignment
from zigzag.reference.checks import check_window
from zigzag.reference.mixed_attention import Calls, by_two_calls
from zigzag.reference.visibility import default_positions

MAX_SCORES = 2**26  # elements of one block of scores: 256 MiB in float32
_BLOCK = 128  # queries that share one gathered window


def device_name() -> str:
    return f"cuda: {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "cpu"


def visible(
    query_positions: Tensor,
    key_positions: Tensor,
    *,
    sink: int | None = None,
    recent: int | None = None,
    align: int = 1,
    parents: Sequence[int] | None = None,
) -> Tensor:
    window = check_window("visible", sink, recent, align)
    i, j = query_positions.unsqueeze(-1), key_positions.unsqueeze(-2)
    seen = (j >= 0) & (j <= i)
    if window is not None and align == 1:
        seen = seen & ((j < window[0]) | (j > i - window[1]))
    elif window is not None:
        first_recent = (i + align) // align - window[1] // align  # ceil((i + 1) / align) = (i + align) // align
        seen = seen & ((j // align < window[0] // align) | (j // align >= first_recent))
    if parents is not None:
        seen = seen & related_nodes(parents, seen.shape[-2], seen.shape[-1], seen.device)
    return seen


def related_nodes(parents: Sequence[int], num_queries: int, num_keys: int, device: torch.device) -> Tensor:
    """[Tq, Tk]: False only where the key is a node that is neither the query itself nor its ancestor."""
    nodes = len(parents)
    ancestors = torch.eye(nodes, dtype=torch.bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            ancestors[node] |= ancestors[parent]
    allowed = torch.ones(num_queries, num_keys, dtype=torch.bool)
    is_node = min(nodes, num_queries)
    allowed[: num_queries - is_node, num_keys - nodes :] = False
    allowed[num_queries - is_node :, num_keys - nodes :] = ancestors[nodes - is_node :]
    return allowed.to(device)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    sink: int | None = None,
    recent: int | None = None,
    align: int = 1,
    scale: float | None = None,
    query_positions: Tensor | None = None,
    key_positions: Tensor | None = None,
    parents: Sequence[int] | None = None,
    block_table: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    window = check_window("attention", sink, recent, align)
    if block_table is not None:
        paged = positions_of(query, block_table.shape[1] * key.shape[2], query_positions, key_positions, parents)
        query_positions = paged[0]
        key, value, key_positions = _gathered(key, value, block_table, paged[1])
    contiguous = query_positions is None and parents is None and query.shape[2] == key.shape[2]
    if window is not None and contiguous and key.shape[2] > sum(window) + _BLOCK:
        return _streaming_prefill(query, key, value, *window, align, scale)
    positions = positions_of(query, key.shape[2], query_positions, key_positions, parents)
    mask = {"sink": sink, "recent": recent, "align": align}
    blank = query_positions is not None or window is not None

    def block(rows: slice) -> tuple[Tensor, Tensor]:
        seen = _seen(positions, rows, parents, **mask)
        probs, lse = _softmax(_scores(query[:, :, rows], key, scale), seen)
        # What none of these queries sees may be anything, NaN too.
        return _weigh(probs, value.masked_fill(~seen.any(dim=-2)[:, None, :, None], 0) if blank else value), lse

    output, lse = _by_query_blocks(block, query, key)
    return output.to(query.dtype), lse


def merge(outputs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    dtype = _compute_dtype(outputs)
    lses = lses.to(torch.promote_types(dtype, lses.dtype))
    lse = torch.logsumexp(lses, dim=0)
    weights = torch.exp(lses - _finite(lse))
    return (weights.to(dtype).unsqueeze(-1) * outputs.to(dtype)).sum(dim=0).to(outputs.dtype), lse


def gated_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gate: Tensor,
    *,
    sink: int,
    recent: int,
    align: int = 1,
    scale: float | None = None,
    query_positions: Tensor | None = None,
    key_positions: Tensor | None = None,
    parents: Sequence[int] | None = None,
) -> Tensor:
    full, streaming = _full_and_streaming(
        query, key, value, sink, recent, align, scale, query_positions, key_positions, parents
    )
    weight = gate.to(full.dtype).repeat_interleave(query.shape[1] // key.shape[1])[:, None, None]
    return (weight * full + (1 - weight) * streaming).to(query.dtype)


def lost_mass(
    query: Tensor,
    key: Tensor,
    *,
    sink: int,
    recent: int,
    align: int = 1,
    scale: float | None = None,
    query_positions: Tensor | None = None,
    key_positions: Tensor | None = None,
    parents: Sequence[int] | None = None,
) -> Tensor:
    positions = positions_of(query, key.shape[2], query_positions, key_positions, parents)

    def block(rows: slice) -> tuple[Tensor, Tensor]:
        probs, lse = _softmax(_scores(query[:, :, rows], key, scale), _seen(positions, rows, parents))
        kept = _seen(positions, rows, parents, sink=sink, recent=recent, align=align)
        return probs.masked_fill(kept[:, None, None], 0).sum(dim=-1).flatten(1, 2).unsqueeze(-1), lse

    return _by_query_blocks(block, query, key)[0].squeeze(-1).to(query.dtype)


def output_deviation(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    sink: int,
    recent: int,
    align: int = 1,
    scale: float | None = None,
    query_positions: Tensor | None = None,
    key_positions: Tensor | None = None,
    parents: Sequence[int] | None = None,
) -> Tensor:
    full, streaming = _full_and_streaming(
        query, key, value, sink, recent, align, scale, query_positions, key_positions, parents
    )
    size = full.norm(dim=-1)
    change = (full - streaming).norm(dim=-1)
    return torch.where(size > 0, change / torch.where(size > 0, size, 1), 0).to(query.dtype)


def gate_gradient(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grad_output: Tensor,
    *,
    sink: int,
    recent: int,
    align: int = 1,
    scale: float | None = None,
    query_positions: Tensor | None = None,
    key_positions: Tensor | None = None,
    parents: Sequence[int] | None = None,
) -> Tensor:
    full, streaming = _full_and_streaming(
        query, key, value, sink, recent, align, scale, query_positions, key_positions, parents
    )
    by_head = (grad_output.to(full.dtype) * (full - streaming)).sum(dim=(-1, -2))
    return by_head.unflatten(1, (key.shape[1], -1)).sum(dim=-1).to(query.dtype)


def assign_heads(scores: Tensor, num_full: int) -> Tensor:
    return torch.from_numpy(assignment.assign_heads(_to_host(scores), num_full)).to(scores.device)


def assign_layers(scores: Tensor, num_full: int, *, criterion: str = "weighted_gain", gain: float = 0.5) -> Tensor:
    full = assignment.assign_layers(_to_host(scores), num_full, criterion=criterion, gain=gain)
    return torch.from_numpy(full).to(scores.device)


def _to_host(scores: Tensor):
    """Assignment sorts a few hundred numbers once: the reference on the host is the fast way."""
    return scores.detach().cpu().double().numpy() if scores.is_floating_point() else scores.detach().cpu().numpy()


def _compute_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def positions_of(
    query: Tensor,
    num_keys: int,
    query_positions: Tensor | None,
    key_positions: Tensor | None,
    parents: Sequence[int] | None,
) -> tuple[Tensor, Tensor]:
    """(query_positions, key_positions) as [B or 1, T]."""
    if key_positions is None and parents is None:
        key_positions = torch.arange(num_keys, device=query.device)
    elif key_positions is None:
        defaults = default_positions(query.shape[2], num_keys, parents)
        query_positions, key_positions = (torch.from_numpy(p.copy()).to(query.device) for p in defaults)
    if query_positions is None:
        query_positions = key_positions[num_keys - query.shape[2] :]
    return torch.atleast_2d(query_positions), torch.atleast_2d(key_positions)


def _gathered(key: Tensor, value: Tensor, block_table: Tensor, key_positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(key, value, key_positions) of a paged cache as [B, G, Tk, D], [B, G, Tk, Dv], [B, Tk]: copies."""
    missing = (block_table < 0).repeat_interleave(key.shape[2], dim=1)
    key, value = (pages[block_table.clamp(min=0)].transpose(1, 2).flatten(2, 3) for pages in (key, value))
    return key, value, key_positions.masked_fill(missing, -1)


def _seen(positions: tuple[Tensor, Tensor], rows: slice, parents: Sequence[int] | None, **window: int | None) -> Tensor:
    """[B or 1, rows, Tk] visibility of some of the queries."""
    if parents is None:
        return visible(positions[0][:, rows], positions[1], **window)
    return visible(*positions, parents=parents, **window)[:, rows]


def _scores(query: Tensor, key: Tensor, scale: float | None) -> Tensor:
    """[B, G, H/G, Tq, Tk] scaled scores; query heads of a group share their key without a copy."""
    dtype = _compute_dtype(query)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    grouped = (query.to(dtype) * factor).unflatten(1, (key.shape[1], -1))
    return grouped @ key.to(dtype).unsqueeze(2).transpose(-1, -2)


def _softmax(scores: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """(probabilities [B, G, H/G, Tq, Tk], lse [B, H, Tq]); rows that see nothing give 0 and -inf."""
    scores = scores.masked_fill(~seen[:, None, None], -torch.inf)
    lse = torch.logsumexp(scores, dim=-1)
    return torch.exp(scores - _finite(lse).unsqueeze(-1)), lse.flatten(1, 2)


def _weigh(probs: Tensor, value: Tensor) -> Tensor:
    """[B, H, Tq, Dv] probability-weighted values."""
    return (probs @ value.to(probs.dtype).unsqueeze(2)).flatten(1, 2)


def _finite(lse: Tensor) -> Tensor:
    return lse.masked_fill(lse == -torch.inf, 0)


def _by_query_blocks(
    block: Callable[[slice], tuple[Tensor, Tensor]], query: Tensor, key: Tensor
) -> tuple[Tensor, Tensor]:
    """`block` over all queries, in as few pieces as MAX_SCORES allows (one, unless the input is long)."""
    length, per_query = query.shape[2], query.shape[0] * query.shape[1] * key.shape[2]
    size = max(1, MAX_SCORES // max(per_query, 1))
    if size >= length:
        return block(slice(0, length))
    parts = [block(slice(start, start + size)) for start in range(0, length, size)]
    return torch.cat([output for output, _ in parts], dim=2), torch.cat([lse for _, lse in parts], dim=2)


def _full_and_streaming(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sink: int,
    recent: int,
    align: int,
    scale: float | None,
    query_positions: Tensor | None,
    key_positions: Tensor | None,
    parents: Sequence[int] | None,
) -> tuple[Tensor, Tensor]:
    """Both outputs [B, H, Tq, Dv] in the compute dtype, so that their difference is not rounded twice."""
    query, key, value = (t.to(_compute_dtype(query)) for t in (query, key, value))
    rest = {"scale": scale, "query_positions": query_positions, "key_positions": key_positions, "parents": parents}
    if query_positions is None and parents is None and query.shape[2] == key.shape[2]:  # fused: no T * T scores
        full = _causal(query, key, value, scale)
    else:
        full, _ = attention(query, key, value, **rest)
    streaming, _ = attention(query, key, value, sink=sink, recent=recent, align=align, **rest)
    return full, streaming


def _causal(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    if query.is_cuda:  # the fused kernel for float32 wants a key for each head; without it there are T * T scores
        share = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(share, dim=1), value.repeat_interleave(share, dim=1)
    return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=not query.is_cuda)


def _streaming_prefill(
    query: Tensor, key: Tensor, value: Tensor, sink: int, recent: int, align: int, scale: float | None
) -> tuple[Tensor, Tensor]:
    """Streaming attention of a whole prompt: each block of queries against the sinks and its own window.

    The blocks become a batch axis: queries [B * blocks, H, block, D], keys [B * blocks, G, window, D].
    """
    batch, _, length, _ = query.shape
    blocks = -(-length // _BLOCK)
    window = torch.arange(_BLOCK + recent, device=query.device) - recent
    starts = torch.arange(blocks, device=query.device)[:, None] * _BLOCK
    recent_keys = starts + window  # [blocks, recent + block]
    sinks = torch.arange(sink, device=query.device).expand(blocks, sink)
    outside = (recent_keys < sink) | (recent_keys >= length)  # sinks are listed once, in their own slots
    key_positions = torch.cat([sinks, recent_keys.masked_fill(outside, -1)], dim=1)
    query_positions = starts + torch.arange(_BLOCK, device=query.device)
    gathered = key_positions.clamp(min=0)

    def windows(states: Tensor) -> Tensor:  # [B, G, T, D] -> [B * blocks, G, sink + recent + block, D]
        return states[:, :, gathered].transpose(1, 2).flatten(0, 1)

    padded = pad(query, (0, 0, 0, blocks * _BLOCK - length))
    rows = padded.unflatten(2, (blocks, _BLOCK)).transpose(1, 2).flatten(0, 1)
    seen = visible(query_positions, key_positions, sink=sink, recent=recent, align=align).repeat(batch, 1, 1)
    probs, lse = _softmax(_scores(rows, windows(key), scale), seen)
    output = _weigh(probs, windows(value)).unflatten(0, (batch, blocks)).transpose(1, 2).flatten(2, 3)
    lse = lse.unflatten(0, (batch, blocks)).transpose(1, 2).flatten(2, 3)
    return output[:, :, :length].to(query.dtype), lse[:, :, :length]


def join_heads(parts: Sequence[Tensor]) -> Tensor:
    """The heads of all parts, [B, heads, ...]."""
    return torch.cat(list(parts), dim=1)


mixed_attention = partial(by_two_calls, Calls(attention, positions_of, join_heads))
