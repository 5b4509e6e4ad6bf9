"""Who sees whom, attention, and the merge of partial results."""

from collections.abc import Sequence

from zigzag.backends import lookup
from zigzag.ops.arrays import Array
from zigzag.reference import checks


def visible(
    query_positions: Array,
    key_positions: Array,
    *,
    sink: int | None = None,
    recent: int | None = None,
    align: int = 1,
    parents: Sequence[int] | None = None,
    backend: str = "auto",
) -> Array:
    """True where a query may look at a key.

    A query at position i sees a key at position j iff ``0 <= j <= i`` and, when `sink` or `recent`
    is given (a streaming layer),

        ``j // align < sink // align``  or  ``j // align >= ceil((i + 1) / align) - recent // align``.

    With ``align = 1`` this is ``j < sink or i - j < recent``: `recent` counts the query's own token,
    so a query sees at most sink + recent keys (DuoAttention's token-exact mask, arXiv 2410.10819).
    With ``align = 128`` it is the block-aligned mask of LongCat ZigZag attention (arXiv 2512.23966).
    Position -1 marks padding or an empty slot: it sees nothing and is never seen.

    With `parents` the last N keys are nodes of a token tree, and the last queries are the same
    nodes: a node sees, among the nodes, itself and its ancestors only.

    query_positions: [Tq] or [B, Tq] absolute positions, 0-based, -1 for padding.
    key_positions: [Tk] or [B, Tk] likewise.
    sink: first tokens that a streaming layer keeps; recent: last tokens. One given: the other is 0.
    align: block size; sink and recent must be multiples of it.
    parents: [N] index of each node's parent among the nodes, -1 for the last committed token.
    return: [Tq, Tk] or [B, Tq, Tk]

    Raises ArgumentError or KindError for a negative or misaligned size, sink + recent = 0,
    positions that are not integers, or parents that are not earlier nodes.

    backend: a name of `zigzag.list_backends()`, or "auto"; one that cannot be used raises BackendError
    """
    function = lookup("visible", backend, query_positions)
    window = checks.window_options("visible", sink, recent, align)
    if hasattr(query_positions, "shape") and hasattr(key_positions, "shape"):
        for name, positions in (("query_positions", query_positions), ("key_positions", key_positions)):
            checks.check_positions("visible", name, positions, positions.shape[-1] if positions.ndim else 0)
        checks.check_parents("visible", parents, key_positions.shape[-1])
    return function(query_positions, key_positions, **window, parents=parents)


def attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    sink: int | None = None,
    recent: int | None = None,
    align: int = 1,
    scale: float | None = None,
    query_positions: Array | None = None,
    key_positions: Array | None = None,
    parents: Sequence[int] | None = None,
    block_table: Array | None = None,
    backend: str = "auto",
) -> tuple[Array, Array]:
    """Softmax attention over the visible keys, with the log of its normaliser.

    ``output = sum_j softmax_j(scale * <query, key_j>) value_j`` over the keys that `visible` allows,
    ``lse = log sum_j exp(scale * <query, key_j>)`` over the same keys (natural logarithm).
    Query head h uses KV head ``h // (H // G)``. A row that sees nothing gives output 0 and lse -inf.
    Keys are taken as they are (cached after RoPE); nothing is renumbered.

    query: [B, H, Tq, D]
    key: [B, G, Tk, D]
    value: [B, G, Tk, Dv]
    sink, recent, align, parents: as in `visible`; both sizes None: full causal attention.
    scale: factor on the scores; default ``D ** -0.5``.
    query_positions: [Tq] or [B, Tq]; key_positions: [Tk] or [B, Tk]; default: keys 0..Tk-1, queries
        the last Tq of them. Rows of different lengths in one buffer need query_positions alone: what lies
        behind a row's last token is later than all its queries, so none sees it.
    block_table: [B, N] for a paged cache: key is [pages, G, page_size, D], value [pages, G, page_size, Dv],
        and row b's keys are those of the pages block_table[b], in this order; Tk = N * page_size. -1: no page,
        its keys are never visible.
    return: output [B, H, Tq, Dv] in the dtype of `query`, lse [B, H, Tq] at least in float32 (the reference: float64)

    Raises ArgumentError or KindError for shapes that do not fit, H not a multiple of G, a bad window, or page
    numbers out of range (a GPU backend does not look at them).

    backend: a name of `zigzag.list_backends()`, or "auto"; one that cannot be used raises BackendError
    """
    function = lookup("attention", backend, query, differentiable=(query, key, value))
    where = {
        "query_positions": query_positions,
        "key_positions": key_positions,
        "parents": parents,
        "block_table": block_table,
    }
    window, scale = checks.window_options("attention", sink, recent, align), checks.check_scale("attention", scale)
    checks.check_attention("attention", query, key, value, **where)
    result: tuple[Array, Array] = function(query, key, value, **window, scale=scale, **where)
    return result


def merge(outputs: Array, lses: Array, *, backend: str = "auto") -> tuple[Array, Array]:
    """Attention over the union of disjoint key sets, from the attention over each set.

    ``lse = log sum_p exp(lse_p)``, ``output = sum_p exp(lse_p - lse) output_p``: the law behind
    split-KV decoding and chunked prefill. Parts that saw nothing (lse -inf) count nothing; if no part
    saw anything the result is output 0 and lse -inf.

    outputs: [P, B, H, Tq, Dv]
    lses: [P, B, H, Tq]
    return: output [B, H, Tq, Dv], lse [B, H, Tq]

    Raises ArgumentError for shapes that do not fit or P = 0.

    backend: a name of `zigzag.list_backends()`, or "auto"; one that cannot be used raises BackendError
    """
    function = lookup("merge", backend, outputs, differentiable=(outputs, lses))
    sizes: dict[str, int] = {}
    checks.check_shape("merge", "outputs", outputs, "P B H Tq Dv", sizes)
    checks.check_shape("merge", "lses", lses, "P B H Tq", sizes)
    checks.check_floating("merge", outputs=outputs, lses=lses)
    joined: tuple[Array, Array] = function(outputs, lses)
    return joined


def gated_attention(
    query: Array,
    key: Array,
    value: Array,
    gate: Array,
    *,
    sink: int,
    recent: int,
    align: int = 1,
    scale: float | None = None,
    query_positions: Array | None = None,
    key_positions: Array | None = None,
    parents: Sequence[int] | None = None,
    backend: str = "auto",
) -> Array:
    """``gate * full + (1 - gate) * streaming``, one gate for each KV head.

    DuoAttention's training mixture (arXiv 2410.10819); a gate of 0 or 1 is a head-wise plan.

    gate: [G], any real numbers; the other arguments as in `attention`, with a window required.
    return: output [B, H, Tq, Dv]

    backend: a name of `zigzag.list_backends()`, or "auto"; one that cannot be used raises BackendError
    """
    function = lookup("gated_attention", backend, query, differentiable=(query, key, value, gate))
    where = {"query_positions": query_positions, "key_positions": key_positions, "parents": parents}
    window = checks.window_options("gated_attention", sink, recent, align, streaming=True)
    scale = checks.check_scale("gated_attention", scale)
    sizes = checks.check_attention("gated_attention", query, key, value, **where)
    checks.check_shape("gated_attention", "gate", gate, "G", sizes)
    return function(query, key, value, gate, **window, scale=scale, **where)
