"""What an op does when an option is left out: every default; backends share them by `test_same_signature`."""

import inspect
from typing import Any

import pytest

from zigzag import reference
from zigzag.reference.rules import RULES

NOTHING = ("sink", "recent", "scale", "query_positions", "key_positions", "streaming_positions", "parents", "value")
EVERYWHERE: dict[str, Any] = dict.fromkeys(NOTHING) | {
    "align": 1,
    "block_table": None,
    "num_draft_tokens": None,
    "temperature": None,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "replacement": True,
    "num_groups": 1,
    "top_groups": 1,
    "normalize": True,
    "scaling": 1.0,
    "criterion": "weighted_gain",
    "gain": 0.5,
    "epsilon": 0.09,
    "top_n": 10,
    "max_queries": None,
}
OF_ONE = {
    ("to_probs", "temperature"): 1.0,
    ("verify_typical", "delta"): 0.3,
    ("verify_relaxed", "delta"): 0.6,
}


def defaults(function: Any) -> dict[str, Any]:
    found = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in found if p.default is not inspect.Parameter.empty}


@pytest.mark.parametrize("op", reference.OPS)
def test_defaults(op: str) -> None:
    found = defaults(getattr(reference, op))
    assert found == {name: OF_ONE.get((op, name), EVERYWHERE.get(name, "not in the table")) for name in found}


def test_every_name_that_is_handed_on_exists() -> None:
    assert len(set(reference.OPS)) == len(reference.OPS) >= 20
    assert all(hasattr(reference, name) for name in reference.__all__)
    assert {*reference.OPS, *reference.ANALYSES} < set(reference.__all__)
    assert not set(reference.OPS) & set(reference.ANALYSES)


def test_the_table_can_fail() -> None:
    assert {name for op in reference.OPS for name in defaults(getattr(reference, op))} >= set(EVERYWHERE) - {"value"}
    assert defaults(lambda a, b=1, *, c=None: None) == {"b": 1, "c": None}


@pytest.mark.parametrize("name", RULES)
def test_a_rules_options_are_those_of_its_ops(name: str) -> None:
    """The table of rules, its tables of one row and its ops say the same."""
    rule = RULES[name]
    ops = [getattr(reference, op) for op in (rule.chain, rule.tree) if op]
    assert ops
    for function in (*ops, *([rule.tables] if rule.tables else [])):
        given = defaults(function)
        assert {option: given[option] for option in rule.defaults} == rule.defaults
        for option in rule.required:
            assert given.get(option, inspect.Parameter.empty) is inspect.Parameter.empty or name == "lenient"


def test_the_rules_by_name() -> None:
    assert list(RULES) == "greedy residual block traversal exact k_seq typical relaxed top_k lenient".split()
    assert [name for name, rule in RULES.items() if not rule.lossless] == ["typical", "relaxed", "top_k", "lenient"]
    assert reference.rules.LOSSY_RULES == ("typical", "relaxed", "top_k", "lenient")
    told = {
        "only_greedy": "greedy",
        "takes_logits": "greedy top_k",
        "needs_draft_probs": "residual block traversal k_seq lenient",
        "needs_uniforms": "residual block traversal exact k_seq typical lenient",
        "tells_replacement": "residual traversal",
        "one_source": "k_seq",
        "tree": "greedy residual traversal k_seq",
        "chain": "greedy residual block exact typical relaxed top_k lenient",
        "required": "top_k lenient",
    }
    for field, names in told.items():
        assert [name for name, rule in RULES.items() if getattr(rule, field)] == names.split(), field
    assert RULES["top_k"].required == {"k": 10} and RULES["lenient"].required == {"lenience": 0.5}
    for name, rule in RULES.items():
        assert rule.chain in ("", f"verify_{name}") and rule.tree in ("", f"verify_tree_{name}")
    assert RULES["residual"].arguments(1, 2, 3, 4) == [1, 2, 3, 4] and RULES["exact"].arguments(1, 2, 3, 4) == [1, 3, 4]
    assert RULES["greedy"].arguments(1, 2, 3, 4) == [1, 3]
