"""Which experts a token goes to, and with what weights."""

from zigzag.backends import array_kind, lookup
from zigzag.ops.documented import Array, documented
from zigzag.reference import checks


@documented
def route_experts(
    router_logits: Array,
    bias: Array,
    *,
    top_k: int,
    num_groups: int = 1,
    top_groups: int = 1,
    normalize: bool = True,
    scaling: float = 1.0,
    backend: str = "auto",
) -> tuple[Array, Array]:
    function = lookup("route_experts", backend, router_logits)
    given = checks.same_kind("route_experts", array_kind, {"router_logits": router_logits, "bias": bias})
    counts = {"top_k": top_k, "num_groups": num_groups, "top_groups": top_groups}
    options = {**counts, "normalize": normalize, "scaling": scaling}
    checks.check_routing(**given, **options)
    return function(*given.values(), **options)
