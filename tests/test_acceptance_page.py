"""docs/acceptance.md says of each rule what the code does, and of the zoo what its mistakes cite."""

import re
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed")

import torch
from laws.zoo import ZOO
from test_docs import fences

from zigzag.generation.distribution import Distribution
from zigzag.generation.rules import Rule
from zigzag.reference import RULES

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "acceptance.md").read_text(encoding="utf-8")
CITED = re.compile(r" \(([^()]*(?:#\d+|EAGLE|TriForce)[^()]*)\)")


def rows(text: str, first: str) -> dict[str, list[str]]:
    """The cells behind the name, of the table whose first column is headed `first`."""
    table = re.search(rf"^\| {first} \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert table, f"no table of {first}"
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[1].splitlines()]
    return {name.strip("` "): rest for name, *rest in cells}


def in_the_code(name: str) -> list[str]:
    """The cells of a rule that the registry says."""
    rule = RULES[name]
    options = ", ".join(f"{option}={value}" for option, value in {**rule.defaults, **rule.required}.items())
    ops = ", ".join(f"`{op}`" for op in (rule.chain, rule.tree) if op)
    lossless = "at temperature 0" if rule.only_greedy else "yes" if rule.lossless else "no"
    takes = ", ".join(["q"] * rule.needs_draft_probs + ["u"] * rule.needs_uniforms)
    return [f"`{options}`" if options else "-", ops, lossless, takes or "nothing"]


def test_the_page_has_the_registry() -> None:
    options, ops = rows(TEXT, "rule"), rows(TEXT, "by name")
    assert {name: [options[name][0], *ops[name][:3]] for name in options | ops} == {n: in_the_code(n) for n in RULES}


def only_the_argmax(rule: Rule) -> bool:
    """Whether at temperature 0 `generate` emits greedy tokens alone: each of 5 tokens drafted twice after 200 rows."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 3, 5, generator=generator)
    uniforms, q = (torch.rand(*shape, generator=generator) for shape in ((200, 3), (200, 2, 5)))
    parents = None if RULES[rule.name].chain else [-1, 0]
    emitted = []
    for token in range(5):
        drafts, counts = torch.full((200, 2), token), torch.full((200,), 2)
        q_row = (q + 0.1) / (q + 0.1).sum(-1, keepdim=True)
        verdict = rule.verify(drafts, q_row, logits, Distribution(0), uniforms, counts, parents, True)
        emitted.append(verdict.output_token_ids)
    best = logits.argmax(-1)
    return all(bool(((ids == best) | (ids == -1)).all()) for ids in emitted)


@pytest.mark.parametrize("name", RULES)
def test_what_the_page_says_of_temperature_0(name: str) -> None:
    assert rows(TEXT, "rule")[name][-1].startswith("the argmax") == only_the_argmax(Rule(name, {}))


def test_other_options_are_other_rules() -> None:
    """What the page says of relaxed has its condition, and the check sees where it is not met."""
    assert not only_the_argmax(Rule("relaxed", {"delta": 1.0}))
    assert only_the_argmax(Rule("top_k", {"k": 1}))


def test_the_page_cites_what_the_zoo_cites() -> None:
    cited = {}
    for name, (procedure, _) in ZOO.items():
        if found := CITED.search(procedure.__doc__ or ""):
            cited[name] = [CITED.sub("", procedure.__doc__ or ""), found[1]]
    assert len(cited) > 5
    assert rows(TEXT, "in the zoo") == cited


@pytest.mark.parametrize("block", fences(TEXT, "python"), ids=lambda block: block.split("\n")[0])
def test_each_block_stands_alone(block: str) -> None:
    exec(compile(block, "<docs>", "exec"), {})


def test_cells_are_read() -> None:
    assert rows("| rule | a |\n|---|---|\n| `x` | 1 |\n\n| `y` | 2 |\n", "rule") == {"x": ["1"]}
    with pytest.raises(AssertionError, match="no table of zoo"):
        rows("| rule |\n|---|\n| x |\n", "zoo")
