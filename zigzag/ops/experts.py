"""What the experts of a token make of it."""

from zigzag.backends import array_kind, lookup
from zigzag.ops.documented import Array, documented
from zigzag.reference import checks
from zigzag.reference.checks import check_expert_ids, check_experts


@documented
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
    function = lookup("apply_experts", backend, hidden)
    arrays = {"hidden": hidden, "expert_ids": expert_ids, "weights": weights, "gate_up": gate_up, "down": down}
    given = checks.same_kind("apply_experts", array_kind, arrays)
    check_experts(**given)
    if validate:
        check_expert_ids(given["expert_ids"], len(given["gate_up"]))
    return function(*given.values())
