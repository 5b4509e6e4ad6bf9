"""Acceptance rules by name, what each needs from a drafter, and rules that change with the phase of the text."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zigzag import ops
from zigzag.reference.errors import ArgumentError
from zigzag.reference.verification import LOSSY_RULES, Verdict

if TYPE_CHECKING:
    from zigzag.generation.distribution import Distribution

NEEDS_DRAFT_PROBS = ("residual", "block", "lenient", "k_seq")
TREE_RULES = ("greedy", "residual", "k_seq")
NAMES = ("greedy", "residual", "block", "exact", "k_seq", *LOSSY_RULES)


@dataclass(frozen=True)
class Rule:
    """One acceptance rule and its options, as `Rule("lenient", {"lenience": 0.5})`; see docs/acceptance.md.

    Raises ArgumentError for an unknown name.
    """

    name: str = "residual"
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ArgumentError(f"rule must be one of {', '.join(NAMES)}, got {self.name!r}")

    @property
    def lossless(self) -> bool:
        return self.name not in LOSSY_RULES

    def check(self, law: str, is_tree: bool, temperature: float) -> None:
        """ArgumentError where the rule cannot do its work with such drafts."""
        if self.name in NEEDS_DRAFT_PROBS and law == "unknown":
            raise ArgumentError(
                f"rule {self.name!r} needs the distribution that drafts come from, but the drafter's law is unknown; "
                f"use 'exact' (lossless) or 'greedy' with temperature 0"
            )
        if is_tree and self.name not in TREE_RULES:
            raise ArgumentError(f"rule {self.name!r} works on chains only; for trees there are {', '.join(TREE_RULES)}")
        if not is_tree and self.name == "k_seq":
            raise ArgumentError("rule 'k_seq' is for several drafts: use a drafter with parents, or 'residual'")
        if self.name == "greedy" and temperature != 0:
            raise ArgumentError(f"rule 'greedy' is lossless at temperature 0 only, got temperature {temperature}")

    def verify(
        self,
        ids: Any,
        draft_probs: Any,
        logits: Any,
        distribution: "Distribution",
        uniforms: Any,
        counts: Any,
        parents: Sequence[int] | None,
        replacement: bool,
    ) -> Verdict:
        """The verdict on drafts `ids` [B, K] after the target's `logits` [B, K + 1, V], of which `distribution` draws.

        Where nothing is cut off the rules for chains take the logits themselves.
        """
        temperature = distribution.temperature
        rest: dict[str, Any] = {"num_draft_tokens": counts, "validate": False}
        if temperature == 0 and self.lossless:  # the argmax, without making probabilities of it
            if parents is None:
                return ops.verify_greedy(ids, logits, **rest)
            return ops.verify_tree_greedy(ids, logits, parents=parents, **rest)
        rest |= self.options
        if distribution.is_plain and parents is None:
            target, rest["temperature"] = logits, temperature
        else:
            target = distribution.probs(logits)
        if parents is not None:
            verify = ops.verify_tree_k_seq if self.name == "k_seq" else ops.verify_tree_residual
            if self.name != "k_seq":
                rest["replacement"] = replacement
            return verify(ids, draft_probs, target, uniforms, parents=parents, **rest)
        if self.name in ("relaxed", "top_k"):
            return getattr(ops, f"verify_{self.name}")(ids, target, **rest)
        if self.name in ("exact", "typical"):
            return getattr(ops, f"verify_{self.name}")(ids, target, uniforms, **rest)
        verify = ops.verify_residual if self.name == "k_seq" else getattr(ops, f"verify_{self.name}")  # no drafts
        return verify(ids, draft_probs, target, uniforms, **rest)

    def by_row(self, inside: Sequence[bool]) -> list["Rule"]:
        return [self] * len(inside)

    def enters(self, inside: bool, tokens: Sequence[int]) -> bool:
        """Whether the row is inside the phase after `tokens`."""
        return False

    def cut(self, inside: bool, tokens: Sequence[int]) -> int:
        """How many of the tokens that were emitted in one round may be kept."""
        return len(tokens)


@dataclass(frozen=True)
class PhaseRule:
    """One rule inside a phase of the text, such as thinking, another outside; each row for itself.

    begin_token_ids, end_token_ids: tokens that open and close the phase. What a round emits after the closing token
    was judged by the inner rule, so it is dropped and decoded again: outside the phase only `outside` decides.

    Source of the idea: relaxed acceptance in TensorRT-LLM.
    """

    inside: Rule
    outside: Rule
    begin_token_ids: tuple[int, ...]
    end_token_ids: tuple[int, ...]

    @property
    def lossless(self) -> bool:
        return self.inside.lossless and self.outside.lossless

    def check(self, law: str, is_tree: bool, temperature: float) -> None:
        self.inside.check(law, is_tree, temperature)
        self.outside.check(law, is_tree, temperature)

    def by_row(self, inside: Sequence[bool]) -> list[Rule]:
        return [self.inside if within else self.outside for within in inside]

    def enters(self, inside: bool, tokens: Sequence[int]) -> bool:
        for token in tokens:
            inside = token in self.begin_token_ids or (inside and token not in self.end_token_ids)
        return inside

    def cut(self, inside: bool, tokens: Sequence[int]) -> int:
        for n, token in enumerate(tokens):
            if inside and token in self.end_token_ids:
                return n + 1
            inside = inside or token in self.begin_token_ids
        return len(tokens)


def as_rule(rule: Any) -> Rule | PhaseRule:
    """A rule from its name, or itself."""
    if isinstance(rule, Rule | PhaseRule):
        return rule
    if not isinstance(rule, str):
        raise ArgumentError(f"rule must be a name, a Rule or a PhaseRule, got {type(rule).__name__}")
    return Rule(rule)
