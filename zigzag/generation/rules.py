"""Acceptance rules by name, what each needs from a drafter, and rules that change with the phase of the text."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zigzag import ops
from zigzag.reference import RULES
from zigzag.reference.errors import ArgumentError
from zigzag.reference.verification import Verdict

if TYPE_CHECKING:
    from zigzag.generation.distribution import Distribution


@dataclass(frozen=True)
class Rule:
    """One acceptance rule and its options, as `Rule("lenient", {"lenience": 0.5})`; see docs/acceptance.md.

    Options that are not given have the values of the table of rules (`zigzag.reference.RULES`), as k = 10 and
    lenience = 0.5. Raises ArgumentError for an unknown name and for an option that the rule does not have.
    """

    name: str = "residual"
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in RULES:
            raise ArgumentError(f"rule must be one of {', '.join(RULES)}, got {self.name!r}")
        required, defaults = RULES[self.name].required.keys(), RULES[self.name].defaults.keys()
        if not self.options.keys() <= required | defaults:
            may = [*required, *defaults]
            raise ArgumentError(f"rule {self.name!r} may have the options {may}, got {list(self.options)}")
        object.__setattr__(self, "options", {**RULES[self.name].required, **self.options})

    @property
    def lossless(self) -> bool:
        return RULES[self.name].lossless

    def check(self, law: str, is_tree: bool, temperature: float) -> None:
        """ArgumentError where the rule cannot do its work with such drafts."""
        rule = RULES[self.name]
        if rule.needs_draft_probs and law == "unknown":
            raise ArgumentError(
                f"rule {self.name!r} needs the distribution that drafts come from, but the drafter's law is unknown; "
                f"use 'exact' (lossless) or 'greedy' with temperature 0"
            )
        if is_tree and not rule.tree:
            for_trees = ", ".join(name for name, other in RULES.items() if other.tree)
            raise ArgumentError(f"rule {self.name!r} works on chains only; for trees there are {for_trees}")
        if not is_tree and not rule.chain:
            raise ArgumentError(f"rule {self.name!r} is for several drafts: use a drafter with parents, or 'residual'")
        if rule.only_greedy and temperature != 0:
            raise ArgumentError(f"rule {self.name!r} is lossless at temperature 0 only, got temperature {temperature}")

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
        rule, options, temperature = RULES[self.name], self.options, distribution.temperature
        if temperature == 0 and rule.lossless:  # the argmax, without making probabilities of it
            rule, options, target = RULES["greedy"], {}, logits
        elif rule.takes_logits:  # ranks: among tokens of probability 0, at temperature 0 or cut off, ids would decide
            target = logits
        elif distribution.is_plain and parents is None:
            target, options = logits, {**options, "temperature": temperature}
        else:
            target = distribution.probs(logits)
        op = rule.chain or RULES["residual"].chain  # a rule for trees in a round without drafts: a draw from the target
        if parents is not None:
            op, options = rule.tree, {**options, "parents": parents}
            if rule.tells_replacement:
                options["replacement"] = replacement
        arguments = rule.arguments(ids, draft_probs, target, uniforms)
        verdict: Verdict = getattr(ops, op)(*arguments, num_draft_tokens=counts, validate=False, **options)
        return verdict

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
