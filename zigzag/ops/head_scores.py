"""What streaming loses, token by token and head by head."""

from collections.abc import Sequence

from zigzag.backends import lookup
from zigzag.ops.arrays import Array
from zigzag.reference import checks


def lost_mass(
    query: Array,
    key: Array,
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
    """Full-attention probability that falls on keys which streaming attention does not see.

    0: nothing is lost by streaming; 1: everything. A row that sees nothing loses 0.

    query: [B, H, Tq, D]; key: [B, G, Tk, D]; the rest as in `attention`, with a window required.
    return: [B, H, Tq] in [0, 1]

    backend: a name of `zigzag.list_backends()`, or "auto"; one that cannot be used raises BackendError
    """
    function = lookup("lost_mass", backend, query, differentiable=(query, key))
    where = {"query_positions": query_positions, "key_positions": key_positions, "parents": parents}
    window = checks.window_options("lost_mass", sink, recent, align, streaming=True)
    scale = checks.check_scale("lost_mass", scale)
    checks.check_attention("lost_mass", query, key, **where)
    return function(query, key, **window, scale=scale, **where)


def output_deviation(
    query: Array,
    key: Array,
    value: Array,
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
    """Relative change of a head's output when it streams: ``||full - streaming|| / ||full||``.

    Euclidean norms over Dv; 0 where ``||full||`` is 0.

    value: [B, G, Tk, Dv]; the rest as in `lost_mass`.
    return: [B, H, Tq], not negative

    backend: a name of `zigzag.list_backends()`, or "auto"; one that cannot be used raises BackendError
    """
    function = lookup("output_deviation", backend, query, differentiable=(query, key, value))
    where = {"query_positions": query_positions, "key_positions": key_positions, "parents": parents}
    window = checks.window_options("output_deviation", sink, recent, align, streaming=True)
    scale = checks.check_scale("output_deviation", scale)
    checks.check_attention("output_deviation", query, key, value, **where)
    return function(query, key, value, **window, scale=scale, **where)


def gate_gradient(
    query: Array,
    key: Array,
    value: Array,
    grad_output: Array,
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
    """Derivative of the loss by each KV head's gate, at gate = 1 (full attention).

    With ``output = gate * full + (1 - gate) * streaming`` (`gated_attention`) the chain rule gives
    ``sum <grad_output, full - streaming>`` over the tokens and the query heads of the group. Its
    negative is the first-order increase of the loss when that head streams.

    grad_output: [B, H, Tq, Dv] derivative of the loss by the attention output.
    The rest as in `output_deviation`.
    return: [B, G]

    backend: a name of `zigzag.list_backends()`, or "auto"; one that cannot be used raises BackendError
    """
    function = lookup("gate_gradient", backend, query, differentiable=(query, key, value))
    where = {"query_positions": query_positions, "key_positions": key_positions, "parents": parents}
    window = checks.window_options("gate_gradient", sink, recent, align, streaming=True)
    scale = checks.check_scale("gate_gradient", scale)
    sizes = checks.check_attention("gate_gradient", query, key, value, **where)
    checks.check_shape("gate_gradient", "grad_output", grad_output, "B H Tq Dv", sizes)
    return function(query, key, value, grad_output, **window, scale=scale, **where)
