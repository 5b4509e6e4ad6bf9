"""One usual call of each op, of any number of rows: what every op is judged by, whatever it computes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from zigzag.conformance.arrays import convert, kind_of
from zigzag.reference.rules import RULES

WINDOW = {"sink": 1, "recent": 2}
RULE = {op: rule for rule in RULES.values() for op in (rule.chain, rule.tree) if op}
SIBLINGS = [-1, -1, 0]
NEED_ROWS = ("ragged_attention", "assign_heads", "assign_layers")  # 0 rows are refused


@dataclass
class Arguments:
    """Of an op; arrays in float64 and int64.

    rows: argument -> its axis along which rows lie that have nothing to do with one another; empty: there is none
    """

    arrays: dict[str, np.ndarray | None]
    options: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)

    def placed(self, backend: str, dtype: str) -> dict[str, Any]:
        """As keyword arguments, arrays of the backend's kind."""
        kind = kind_of(backend)
        arrays = {name: None if a is None else convert(a, kind, dtype) for name, a in self.arrays.items()}
        return arrays | self.options


def typical(op: str, rows: int = 3) -> Arguments:
    """The same each time."""
    rng = np.random.default_rng(len(op))
    return MAKERS[op](rng, rows) if op in MAKERS else verified(op, rng, rows)


def _states(rng: np.random.Generator, rows: int) -> dict[str, np.ndarray | None]:
    """Of 2 KV heads and 4 query heads, 3 queries and 7 keys."""
    shapes = {"query": (4, 3, 5), "key": (2, 7, 5), "value": (2, 7, 3), "grad_output": (4, 3, 3)}
    return {name: rng.standard_normal((rows, *shape)) for name, shape in shapes.items()}


def _batched(*names: str, gate: bool = False) -> Callable[[np.random.Generator, int], Arguments]:
    def make(rng: np.random.Generator, rows: int) -> Arguments:
        states = _states(rng, rows)
        arrays = {name: states[name] for name in names} | ({"gate": np.array([0.25, 1.0])} if gate else {})
        return Arguments(arrays, dict(WINDOW), dict.fromkeys(names, 0))

    return make


def _visible(rng: np.random.Generator, rows: int) -> Arguments:
    keys = rng.permuted(np.tile(np.arange(-1, 8), (rows, 1)), axis=1)
    return Arguments({"query_positions": np.tile([5, 6, 7], (rows, 1)), "key_positions": keys}, dict(WINDOW))


def _merge(rng: np.random.Generator, rows: int) -> Arguments:
    arrays = {"outputs": rng.standard_normal((3, rows, 4, 3, 5)), "lses": rng.standard_normal((3, rows, 4, 3))}
    return Arguments(arrays, rows={"outputs": 1, "lses": 1})


def _mixed(rng: np.random.Generator, rows: int) -> Arguments:
    states = _states(rng, rows)
    key, value = states["key"], states["value"]
    arrays = {"query": states["query"], "full_key": key[:, :1], "full_value": value[:, :1]}
    arrays |= {"streaming_key": key[:, 1:], "streaming_value": value[:, 1:]}
    return Arguments(arrays, {"full_groups": (True, False), **WINDOW}, dict.fromkeys(arrays, 0))


def _ragged(rng: np.random.Generator, rows: int) -> Arguments:
    """Row r has r + 1 new tokens and 5 before them, in pages of 4."""
    counts = np.arange(1, rows + 1)
    pages = -(-(5 + rows) // 4)
    table = rng.permutation(rows * pages).reshape(rows, pages)
    arrays = {"query": rng.standard_normal((int(counts.sum()), 4, 5))}
    arrays |= {name: rng.standard_normal((rows * pages, 2, 4, size)) for name, size in (("key", 5), ("value", 3))}
    arrays |= {"query_starts": np.append(0, np.cumsum(counts)), "lengths": 5 + counts, "block_table": table}
    return Arguments(arrays, dict(WINDOW), {"query": 0})  # what its tokens ask


def _scores(**options: Any) -> Callable[[np.random.Generator, int], Arguments]:
    return lambda rng, rows: Arguments({"scores": rng.standard_normal((rows, 3))}, options)


def _logits(rng: np.random.Generator, rows: int) -> Arguments:
    options = {"temperature": 0.7, "top_k": 5, "top_p": 0.9}
    return Arguments({"logits": rng.standard_normal((rows, 9))}, options, {"logits": 0})


def _weights(rng: np.random.Generator, rows: int) -> Arguments:
    return Arguments({"probs": rng.random((rows, 9)), "uniforms": rng.random(rows)}, rows={"probs": 0, "uniforms": 0})


def _routed(rng: np.random.Generator, rows: int) -> Arguments:
    arrays = {"router_logits": rng.standard_normal((rows, 8)), "bias": rng.standard_normal(8)}
    return Arguments(arrays, {"top_k": 2, "num_groups": 4, "top_groups": 2}, {"router_logits": 0})


def _experts(rng: np.random.Generator, rows: int) -> Arguments:
    arrays = {"hidden": rng.standard_normal((rows, 5)), "expert_ids": rng.integers(-1, 3, (rows, 2))}
    arrays |= {"weights": rng.random((rows, 2)), "gate_up": rng.standard_normal((3, 6, 5))}
    arrays |= {"down": rng.standard_normal((3, 5, 3))}
    return Arguments(arrays, rows={"hidden": 0})


MAKERS: dict[str, Callable[[np.random.Generator, int], Arguments]] = {
    "visible": _visible,
    "attention": _batched("query", "key", "value"),
    "merge": _merge,
    "gated_attention": _batched("query", "key", "value", gate=True),
    "mixed_attention": _mixed,
    "ragged_attention": _ragged,
    "lost_mass": _batched("query", "key"),
    "output_deviation": _batched("query", "key", "value"),
    "gate_gradient": _batched("query", "key", "value", "grad_output"),
    "assign_heads": _scores(num_full_heads=1),
    "assign_layers": _scores(num_full=1),
    "to_probs": _logits,
    "sample": _weights,
    "route_experts": _routed,
    "apply_experts": _experts,
}


def verified(op: str, rng: np.random.Generator, rows: int) -> Arguments:
    """Three drafts; of trees two that begin and one behind the first. Rows are quarters, so exact in every dtype."""
    rule, tree = RULE[op], op == RULE[op].tree
    counts = rng.multinomial(4, np.full(5, 0.2), (rows, 4)) / 4
    draft = np.broadcast_to(counts[:, :1], (rows, 3, 5)).copy()  # siblings were drawn from one row
    ids = np.tile(draft[:, 0].argmax(-1)[:, None], (1, 3))
    names = ["draft_token_ids", *["draft_probs"] * rule.needs_draft_probs]
    names += ["target_logits" if op.endswith("greedy") else "target_probs", *["uniforms"] * rule.needs_uniforms]
    coins = rng.integers(0, 16, (rows, 4)) / 16
    arrays = dict(zip(names, rule.arguments(ids, draft, counts, coins), strict=True))
    options: dict[str, Any] = dict(rule.required) | ({"parents": SIBLINGS} if tree else {})
    if tree and rule.tells_replacement:
        options["replacement"] = True
    return Arguments(arrays, options, {name: 0 for name in names if name != "draft_token_ids"})
