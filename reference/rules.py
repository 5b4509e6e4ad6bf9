"""The acceptance rules by name: the one table that ops, laws, the loop and the command line read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from zigzag.reference import acceptance
from zigzag.reference.acceptance import Tables, first, last


@dataclass(frozen=True)
class AcceptanceRule:
    """What says how a rule decides, the ops that decide by it, and what these need.

    tables: the rule of `acceptance.py`; `walk` finds the accepted path; None: the sampler match, which draws first
    chain, tree: its op for chains and its op for trees of drafts, empty where there is none
    lossless: it emits what the target alone would
    only_greedy: lossless at temperature 0 only
    takes_logits: only the order within a target row counts, so its rows may always be logits
    needs_draft_probs: it must know what drafts were drawn from, or that they were chosen without chance
    needs_uniforms: it tosses coins
    tells_replacement: its op for trees must be told whether siblings were drawn with replacement
    one_source: siblings must be drawn from one row, independently
    defaults: options that may be left out
    required: options that the ops must be given, with the value of `Rule` and of the command line where none is
    """

    tables: Callable[..., Tables] | None
    walk: Callable[..., list[int]] = first
    chain: str = ""
    tree: str = ""
    lossless: bool = False
    only_greedy: bool = False
    takes_logits: bool = False
    needs_draft_probs: bool = False
    needs_uniforms: bool = True
    tells_replacement: bool = False
    one_source: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    required: Mapping[str, Any] = field(default_factory=dict)

    def arguments(self, draft_token_ids: Any, draft_probs: Any, target: Any, uniforms: Any) -> list[Any]:
        """Of all that a rule may look at, what its ops take, in their order."""
        drawn_from = [draft_probs] if self.needs_draft_probs else []
        return [draft_token_ids, *drawn_from, target, *([uniforms] if self.needs_uniforms else [])]


RULES = {
    "greedy": AcceptanceRule(
        acceptance.greedy,
        chain="verify_greedy",
        tree="verify_tree_greedy",
        lossless=True,
        only_greedy=True,
        takes_logits=True,
        needs_uniforms=False,
    ),
    "residual": AcceptanceRule(
        acceptance.residual,
        chain="verify_residual",
        tree="verify_tree_residual",
        lossless=True,
        needs_draft_probs=True,
        tells_replacement=True,
    ),
    "block": AcceptanceRule(acceptance.block, walk=last, chain="verify_block", lossless=True, needs_draft_probs=True),
    "traversal": AcceptanceRule(
        acceptance.traversal,
        walk=last,
        tree="verify_tree_traversal",
        lossless=True,
        needs_draft_probs=True,
        tells_replacement=True,
    ),
    "exact": AcceptanceRule(None, chain="verify_exact", lossless=True),
    "k_seq": AcceptanceRule(
        acceptance.k_seq, tree="verify_tree_k_seq", lossless=True, needs_draft_probs=True, one_source=True
    ),
    "typical": AcceptanceRule(acceptance.typical, chain="verify_typical", defaults={"epsilon": 0.09, "delta": 0.3}),
    "relaxed": AcceptanceRule(
        acceptance.relaxed, chain="verify_relaxed", needs_uniforms=False, defaults={"top_n": 10, "delta": 0.6}
    ),
    "top_k": AcceptanceRule(
        acceptance.top_k, chain="verify_top_k", takes_logits=True, needs_uniforms=False, required={"k": 10}
    ),
    "lenient": AcceptanceRule(
        acceptance.residual, chain="verify_lenient", needs_draft_probs=True, required={"lenience": 0.5}
    ),
}

LOSSY_RULES = tuple(name for name, rule in RULES.items() if not rule.lossless)
