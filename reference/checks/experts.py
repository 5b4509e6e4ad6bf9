"""Checks of the arguments of `route_experts` and `apply_experts`; apart, as they read the device, of expert ids."""

import math
from typing import Any

from zigzag.reference.checks.options import as_real, check_count
from zigzag.reference.checks.shapes import check_floating, check_integers, check_shape
from zigzag.reference.errors import ArgumentError, KindError

OP = "apply_experts"


def check_routing(
    router_logits: Any, bias: Any, top_k: int, num_groups: int, top_groups: int, normalize: bool, scaling: float
) -> dict[str, Any]:
    """The arguments of `route_experts`: shapes, dtypes and counts, no values of arrays. Gives the options as plain."""
    op = "route_experts"
    if len(router_logits.shape) == 0 or router_logits.shape[-1] == 0:
        raise ArgumentError(f"{op}: router_logits must have shape [..., E] with E > 0, got {list(router_logits.shape)}")
    check_floating(op, router_logits=router_logits, bias=bias)
    experts = router_logits.shape[-1]
    check_shape(op, "bias", bias, "E", {"E": experts})
    given = {"top_k": top_k, "num_groups": num_groups, "top_groups": top_groups}
    top_k, num_groups, top_groups = (check_count(op, name, count) for name, count in given.items())
    if experts % num_groups:
        raise ArgumentError(f"{op}: num_groups must divide the E = {experts} experts, got {num_groups}")
    if top_groups > num_groups:
        raise ArgumentError(f"{op}: top_groups must be at most num_groups = {num_groups}, got {top_groups}")
    usable = top_groups * (experts // num_groups)
    if top_k > usable:
        raise ArgumentError(f"{op}: top_k must be at most {usable}, the experts in {top_groups} groups, got {top_k}")
    if not isinstance(normalize, bool):
        raise KindError(f"{op}: normalize must be True or False, got {normalize!r}")
    factor = as_real(scaling)
    if factor is None or not math.isfinite(factor):
        raise ArgumentError(f"{op}: scaling must be a finite number, got {scaling!r}")
    counts = {"top_k": top_k, "num_groups": num_groups, "top_groups": top_groups}
    return {**counts, "normalize": normalize, "scaling": factor}


def check_experts(hidden: Any, expert_ids: Any, weights: Any, gate_up: Any, down: Any) -> None:
    sizes: dict[str, int] = {}
    check_shape(OP, "hidden", hidden, "T M", sizes)
    check_shape(OP, "expert_ids", expert_ids, "T k", sizes)
    check_shape(OP, "weights", weights, "T k", sizes)
    check_shape(OP, "down", down, "E M I", sizes)
    check_shape(OP, "gate_up", gate_up, f"E {2 * sizes['I']} M", sizes)
    check_floating(OP, hidden=hidden, weights=weights, gate_up=gate_up, down=down)
    check_integers(OP, expert_ids=expert_ids)
    for letter in "MkEI":
        if sizes[letter] == 0:
            raise ArgumentError(f"{OP}: {letter} must be at least 1, got 0: nothing to compute with")
    for name, array in {"gate_up": gate_up, "down": down}.items():
        if array.dtype != hidden.dtype:
            raise KindError(f"{OP}: {name} must be {hidden.dtype} like hidden, got {array.dtype}; convert either")


def check_expert_ids(expert_ids: Any, experts: int) -> None:
    for token, row in enumerate(expert_ids.tolist()):
        for slot, expert in enumerate(row):
            if not -1 <= expert < experts:
                raise ArgumentError(
                    f"{OP}: expert_ids must be in [0, {experts}), or -1 for no expert, got {expert} for token {token}, "
                    f"slot {slot}"
                )
