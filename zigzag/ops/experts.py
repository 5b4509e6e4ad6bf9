"""What the experts of a token make of it."""

from zigzag.backends import array_kind, lookup
from zigzag.ops.arrays import Array
from zigzag.reference import checks
from zigzag.reference.checks import check_expert_ids, check_experts


def apply_experts(
    hidden: Array,
    expert_ids: Array,
    weights: Array,
    gate_up: Array,
    down: Array,
    *,
    backend: str = "auto",
    validate: bool = True,
) -> Array:
    """For each token ``sum over its experts e of weight * down_e(silu(gate_e x) * up_e x)``.

    hidden: [T, M]
    expert_ids: integers [T, k]; -1 stands for no expert: it adds nothing, whatever its weight. Without `validate` so
        does every other id outside [0, E). A token may name an expert twice, which then counts twice.
    weights: [T, k], as `route_experts` gives them
    gate_up: [E, 2 I, M], an expert's I gate rows and then its I up rows; down: [E, M, I]; both, as transformers stores
        ``mlp.experts.gate_up_proj`` and ``down_proj``, of the dtype of `hidden`
    return: [T, M], of the dtype of `hidden` (the reference: float64). What an expert holds that a token does not name
        never reaches that token, NaN included.

    Raises ArgumentError or KindError for shapes, dtypes or ids that do not fit.
    Source: transformers' Glm4MoeExperts.

    backend: a name of `zigzag.list_backends()`, or "auto"; one that cannot be used raises BackendError
    validate: check the ids too. It waits for the device, so switch it off in a loop; an id that is out of range then
        names no expert
    """
    function = lookup("apply_experts", backend, hidden, differentiable=(hidden, weights, gate_up, down))
    arrays = {"hidden": hidden, "expert_ids": expert_ids, "weights": weights, "gate_up": gate_up, "down": down}
    given = checks.same_kind("apply_experts", array_kind, arrays)
    check_experts(**given)
    if validate:
        check_expert_ids(given["expert_ids"], len(given["gate_up"]))
    return function(*given.values())
