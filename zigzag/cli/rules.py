"""The acceptance rules that `zigzag generate` takes, and for which drafts."""

from enum import Enum

from zigzag.reference import RULES
from zigzag.reference.errors import ZigzagError

TREES = "lookahead"  # the drafter here whose drafts are a tree
RuleName = Enum("RuleName", {r: r for r in RULES}, type=str)
RULE_HELP = (
    f"Acceptance rule; lossy: {', '.join(name for name, rule in RULES.items() if not rule.lossless)}; for trees, as "
    f"{TREES} drafts them: {', '.join(name for name, rule in RULES.items() if rule.tree)}."
)


def check_rule(rule: str, drafter: str) -> None:
    """ZigzagError, before a model is loaded, where a rule is not for drafts of this shape."""
    known = RULES[rule]
    if drafter == TREES and not known.tree:
        names = ", ".join(name for name, other in RULES.items() if other.tree)
        raise ZigzagError(f"generate: --rule {rule} is for chains, and {TREES} drafts trees; give one of {names}")
    if drafter != TREES and not known.chain:
        raise ZigzagError(
            f"generate: --rule {rule} is for trees, and --drafter {drafter} gives none; give --drafter {TREES}, a "
            f"--recipe that drafts trees (zigzag recipes), or from Python a drafter with parents"
        )
