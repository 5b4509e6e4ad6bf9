"""The table of acceptance rules agrees with the ops, and the loop's rules do what it says."""

import subprocess
import sys
from collections.abc import Mapping
from fractions import Fraction
from inspect import Parameter, signature
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from zigzag import ArgumentError, reference
from zigzag.generation import rules
from zigzag.generation.distribution import Distribution
from zigzag.generation.rules import PhaseRule, Rule
from zigzag.reference import OPS, RULES, AcceptanceRule, acceptance, law

OF_THE_CALL = ("temperature", "num_draft_tokens", "parents", "replacement")  # the other options are the rule's own


def disagreements(table: Mapping[str, AcceptanceRule]) -> list[str]:
    """Rules whose ops do not exist or take something else than the table says, and ops that belong to no rule."""
    wrong = [name for name, rule in table.items() if not all(_agrees(rule, op) for op in (rule.chain, rule.tree) if op)]
    named = {op for rule in table.values() for op in (rule.chain, rule.tree)}
    return wrong + [op for op in OPS if op.startswith("verify_") and op not in named]


def _agrees(rule: AcceptanceRule, op: str) -> bool:
    if op not in OPS:
        return False
    given = signature(getattr(reference, op)).parameters
    arrays = [name.replace("logits", "probs") for name, p in given.items() if p.kind is not Parameter.KEYWORD_ONLY]
    own = {n: p.default for n, p in given.items() if p.kind is Parameter.KEYWORD_ONLY and n not in OF_THE_CALL}
    return (
        arrays == rule.arguments("draft_token_ids", "draft_probs", "target_probs", "uniforms")
        and {name for name, default in own.items() if default is Parameter.empty} == set(rule.required)
        and {name: default for name, default in own.items() if default is not Parameter.empty} == rule.defaults
        and (op == rule.chain or ("replacement" in given) == rule.tells_replacement)
    )


def test_the_table_agrees_with_the_ops() -> None:
    assert disagreements(RULES) == []


@pytest.mark.parametrize(
    "change",
    [
        {"chain": "verify_nothing"},
        {"chain": "verify_greedy"},
        {"needs_uniforms": True, "needs_draft_probs": True},
        {"defaults": {"top_n": 10, "delta": 0.5}},
        {"defaults": {"top_n": 10}},
        {"required": {"k": 1}},
    ],
    ids=str,
)
def test_a_wrong_row_is_noticed(change: dict) -> None:
    row = {"chain": "verify_relaxed", "needs_uniforms": False, "defaults": {"top_n": 10, "delta": 0.6}} | change
    assert "relaxed" in disagreements({**RULES, "relaxed": AcceptanceRule(acceptance.relaxed, **row)})


def test_a_missing_row_is_noticed() -> None:
    assert disagreements({name: rule for name, rule in RULES.items() if name != "block"}) == ["verify_block"]
    trees = {**RULES, "residual": AcceptanceRule(None, tree="verify_tree_residual", needs_draft_probs=True)}
    assert disagreements(trees) == ["residual", "verify_residual"]


def never(draft_token_ids, draft_probs, target_probs, parents) -> acceptance.Tables:
    return acceptance.Tables([1] * len(parents), [0] * len(parents), list(target_probs))


def test_a_new_rule_reaches_the_laws_and_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "never", AcceptanceRule(never, chain="verify_never", lossless=True, only_greedy=True))
    half = [Fraction(1, 2)] * 2
    assert law("never", {(): half}, {(): half, (0,): half, (1,): half}) == {(0,): Fraction(1, 2), (1,): Fraction(1, 2)}
    assert Rule("never").lossless
    with pytest.raises(ArgumentError, match="temperature 0 only"):
        Rule("never").check("dense", False, 1.0)
    with pytest.raises(ArgumentError, match="chains only"):
        Rule("never").check("dense", True, 0.0)
    assert disagreements(RULES) == ["never"], "its op is missed"


CHOICES = """
from zigzag.reference import RULES, AcceptanceRule
RULES["never"] = AcceptanceRule(None, chain="verify_never")
from zigzag.cli.app import RULE_HELP, RuleName
print(*(name.value for name in RuleName))
print(RULE_HELP)
"""


def test_a_new_rule_reaches_the_command_line() -> None:
    """In a fresh interpreter: the command line reads the table when it is imported."""
    pytest.importorskip("typer", reason="typer is not installed")
    pytest.importorskip("rich", reason="rich is not installed")
    done = subprocess.run([sys.executable, "-c", CHOICES], capture_output=True, text=True, timeout=60)
    names, help_text = done.stdout.splitlines()
    assert names.split() == [*RULES, "never"]
    assert help_text == (
        "Acceptance rule; lossy: typical, relaxed, top_k, lenient, never; for trees, as lookahead drafts them: greedy, "
        "residual, traversal, k_seq."
    )


def test_properties() -> None:
    """What is true of each rule, said once more."""

    def having(name: str) -> str:
        return " ".join(rule for rule, row in RULES.items() if getattr(row, name))

    assert " ".join(RULES) == "greedy residual block traversal exact k_seq typical relaxed top_k lenient"
    assert having("lossless") == "greedy residual block traversal exact k_seq"
    assert having("only_greedy") == "greedy"
    assert having("takes_logits") == "greedy top_k"
    assert having("needs_draft_probs") == "residual block traversal k_seq lenient"
    assert having("needs_uniforms") == "residual block traversal exact k_seq typical lenient"
    assert having("tree") == "greedy residual traversal k_seq"
    assert having("tells_replacement") == "residual traversal"
    assert having("one_source") == "k_seq"
    assert reference.LOSSY_RULES == ("typical", "relaxed", "top_k", "lenient")


# --- Rule: which op it calls, with what.

IDS, Q, LOGITS, COINS, COUNTS = "ids", "q", "logits", "coins", "counts"
TREE = [-1, -1]
SOFTMAX, FILTERED = (SimpleNamespace(is_plain=plain, probs=lambda rows: f"probs of {rows}") for plain in (True, False))
PROBS = "probs of logits"


@pytest.mark.parametrize(
    ("rule", "temperature", "distribution", "parents", "op", "arrays", "options"),
    [
        (Rule("block"), 0, FILTERED, None, "verify_greedy", [IDS, LOGITS], {}),
        (Rule("k_seq"), 0, SOFTMAX, TREE, "verify_tree_greedy", [IDS, LOGITS], {"parents": TREE}),
        (Rule("k_seq"), 0, SOFTMAX, None, "verify_greedy", [IDS, LOGITS], {}),
        (Rule("greedy"), 0, SOFTMAX, TREE, "verify_tree_greedy", [IDS, LOGITS], {"parents": TREE}),
        (Rule("residual"), 0.5, SOFTMAX, None, "verify_residual", [IDS, Q, LOGITS, COINS], {"temperature": 0.5}),
        (Rule("residual"), 0.5, FILTERED, None, "verify_residual", [IDS, Q, PROBS, COINS], {}),
        (Rule("block"), 0.5, SOFTMAX, None, "verify_block", [IDS, Q, LOGITS, COINS], {"temperature": 0.5}),
        (Rule("exact"), 0.5, SOFTMAX, None, "verify_exact", [IDS, LOGITS, COINS], {"temperature": 0.5}),
        (Rule("exact"), 0.5, FILTERED, None, "verify_exact", [IDS, PROBS, COINS], {}),
        (Rule("typical"), 0, SOFTMAX, None, "verify_typical", [IDS, LOGITS, COINS], {"temperature": 0}),
        (Rule("relaxed", {"delta": 0.5}), 0, SOFTMAX, None, "verify_relaxed", [IDS, LOGITS],
         {"delta": 0.5, "temperature": 0}),
        (Rule("top_k", {"k": 3}), 0.5, FILTERED, None, "verify_top_k", [IDS, LOGITS], {"k": 3}),
        (Rule("top_k", {"k": 3}), 0, SOFTMAX, None, "verify_top_k", [IDS, LOGITS], {"k": 3}),
        (Rule("lenient", {"lenience": 0.5}), 0.5, FILTERED, None, "verify_lenient", [IDS, Q, PROBS, COINS],
         {"lenience": 0.5}),
        (Rule("residual"), 0.5, SOFTMAX, TREE, "verify_tree_residual", [IDS, Q, PROBS, COINS],
         {"parents": TREE, "replacement": False}),
        (Rule("traversal"), 0.5, SOFTMAX, TREE, "verify_tree_traversal", [IDS, Q, PROBS, COINS],
         {"parents": TREE, "replacement": False}),
        (Rule("traversal"), 0, SOFTMAX, TREE, "verify_tree_greedy", [IDS, LOGITS], {"parents": TREE}),
        (Rule("k_seq"), 0.5, FILTERED, TREE, "verify_tree_k_seq", [IDS, Q, PROBS, COINS], {"parents": TREE}),
        (Rule("k_seq"), 0.5, SOFTMAX, None, "verify_residual", [IDS, Q, LOGITS, COINS], {"temperature": 0.5}),
    ],
)  # fmt: skip
def test_what_is_called(rule, temperature, distribution, parents, op, arrays, options, monkeypatch) -> None:
    calls = []
    recorded = {name: lambda *a, name=name, **o: calls.append((name, list(a), o)) for name in OPS}
    monkeypatch.setattr(rules, "ops", SimpleNamespace(**recorded))
    before = dict(rule.options)
    sampled = SimpleNamespace(temperature=temperature, **vars(distribution))
    rule.verify(IDS, Q, LOGITS, sampled, COINS, COUNTS, parents, False)
    assert calls == [(op, arrays, {**options, "num_draft_tokens": COUNTS, "validate": False})]
    assert rule.options == before


def test_options_that_nobody_gave_are_the_tables() -> None:
    assert Rule("top_k") == Rule("top_k", {"k": 10}) and Rule("lenient").options == {"lenience": 0.5}
    assert Rule("top_k", {"k": 3}).options == {"k": 3} and Rule("typical").options == {}


@pytest.mark.parametrize(("temperature", "top_k"), [(0, 0), (1, 0), (1, 1)])
def test_top_k_ranks_by_the_logits(temperature: float, top_k: int) -> None:
    """At temperature 0 token 0 was taken, for its small id, and the second likeliest was not."""
    logits = torch.tensor([[0.0, 1.0, 5.0, 4.0], [1.0, 0.0, 0.0, 0.0]]).expand(4, 2, 4)
    ids, counts = torch.arange(4)[:, None], torch.ones(4, dtype=torch.int64)
    verdict = Rule("top_k", {"k": 2}).verify(
        ids, None, logits, Distribution(temperature, top_k), None, counts, None, True
    )
    assert verdict.num_accepted.tolist() == [0, 0, 1, 1]


def test_the_verdict_is_the_op_s() -> None:
    ids, logits = np.array([[1]]), np.array([[[0.0, 1.0], [1.0, 0.0]]])
    greedy = SimpleNamespace(temperature=0, is_plain=True)
    verdict = Rule("exact").verify(ids, None, logits, greedy, None, np.array([1]), None, True)
    assert verdict.output_token_ids.tolist() == [[1, 0]]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("rejection", {}, "rule must be one of greedy, residual, .* got 'rejection'"),
        ("lenient", {"k": 1}, r"'lenient' may have the options \['lenience'\], got \['k'\]"),
        ("relaxed", {"top_k": 3}, r"may have the options \['top_n', 'delta'\], got \['top_k'\]"),
        ("residual", {"lenience": 0.5}, r"may have the options \[\], got \['lenience'\]"),
    ],
)
def test_bad_rules(name: str, options: dict, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        Rule(name, options)


@pytest.mark.parametrize(
    ("rule", "arguments", "words"),
    [
        (Rule("residual"), ("unknown", False, 1.0), "rule 'residual' needs the distribution that drafts come from"),
        (Rule("lenient", {"lenience": 1.0}), ("unknown", False, 0.0), "rule 'lenient' needs the distribution"),
        (
            Rule("exact"),
            ("dense", True, 1.0),
            "'exact' works on chains only; for trees .* greedy, residual, trav",
        ),
        (Rule("k_seq"), ("dense", False, 1.0), "'k_seq' is for several drafts: use a drafter with parents, or 'res"),
        (Rule("greedy"), ("one-hot", False, 0.5), "'greedy' is lossless at temperature 0 only, got temperature 0.5"),
        (PhaseRule(Rule("exact"), Rule("block"), (1,), (2,)), ("unknown", False, 1.0), "rule 'block' needs"),
    ],
)
def test_what_a_rule_cannot_do(rule: Rule | PhaseRule, arguments: tuple[str, bool, float], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        rule.check(*arguments)


def test_what_a_rule_can_do() -> None:
    Rule("exact").check("unknown", False, 1.0)
    Rule("greedy").check("unknown", True, 0.0)
    Rule("k_seq").check("dense", True, 1.0)


def test_log_probabilities_at_a_small_temperature() -> None:
    """Far below what a temperature times the largest logit could hold."""
    found = Distribution(temperature=1e-36).log_probs(torch.tensor([1000.0, 999.0, 1000.0]))
    assert torch.allclose(found[::2].exp(), torch.tensor([0.5, 0.5])) and found[1] == -1e36
