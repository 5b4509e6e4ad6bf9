"""Checks of the arguments of `apply_experts`: shapes and dtypes; and apart, as they read the device, the ids."""

from typing import Any

from zigzag.reference.checks.shapes import check_floating, check_integers, check_shape
from zigzag.reference.errors import ArgumentError, KindError

OP = "apply_experts"


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
