"""What the recipes of the survey's systems are made of: each a function that gives the arguments of `generate`."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from zigzag.reference.trees import node_depths

Made = dict[str, Any]  # arguments of `generate`
WITH, WITHOUT = "with replacement", "without replacement"
TREE = (-1, -1, 0, 0, 1, 2)  # two tokens deep, mostly; sorted by level, as a drafter wants it
WIDE = (-1, -1, -1, 0, 0, 0, 1, 2, 3, 3, 4, 6, 8, 9, 12, 14)  # `best_tree([0.6, 0.15, 0.08], 16)`
CHAINS = (-1, -1, -1, 0, 1, 2, 3, 4, 5)  # three side by side
LENGTH = 4
ROLLBACK = 0.1353352832366127  # e^-2


def lookup() -> Made:
    from zigzag.generation.drafting import LookupDrafter

    return {"drafter": LookupDrafter(10), "rule": "exact"}


def jacobi() -> Made:
    from zigzag.generation.drafting import JacobiDrafter

    return {"drafter": JacobiDrafter(LENGTH), "rule": "exact"}


def lookahead() -> Made:
    from zigzag.generation.drafting import LookaheadDrafter

    return {"drafter": LookaheadDrafter(), "rule": "residual"}


def of_small_model(rule: str = "residual", **options: Any) -> Callable[..., Made]:
    """Drafts of a small model; options: of ModelDrafter."""

    def make(draft_model: Any) -> Made:
        from zigzag.generation.drafting import ModelDrafter

        return {"drafter": ModelDrafter(draft_model, **{"stop": LENGTH, **options}), "rule": rule}

    return make


without_replacement = of_small_model(parents=TREE, siblings=WITHOUT)


def sequoia(draft_model: Any) -> Made:
    """The best tree of 12 for drafts of which the first is right in 6 of 10 cases, the second in 2, the third in 1."""
    from zigzag.reference import best_tree

    parents, _ = best_tree([0.6, 0.2, 0.1], 12)
    return of_small_model(parents=parents, siblings=WITHOUT)(draft_model)


def streaming(num_layers: int) -> Made:
    from zigzag.generation.drafting import streaming_drafter

    return {"drafter": streaming_drafter(num_layers, stop=LENGTH), "rule": "residual"}


def skipping(skip: Any) -> Made:
    from zigzag.generation.drafting import Confidence, ModelDrafter

    return {"drafter": ModelDrafter(skip=skip, stop=Confidence(0.6, 8)), "rule": "residual"}


def staged(draft_model: Any) -> Made:
    from zigzag.generation.drafting import LookupDrafter, StagedDrafter

    return {"drafter": StagedDrafter(draft_model, drafter=LookupDrafter(LENGTH), length=8), "rule": "residual"}


def cascade(draft_model: Any) -> Made:
    """Both of its cascades: copies draft for the model, and go on behind its tokens."""
    from zigzag.generation.drafting import LookupDrafter, RelayDrafter, StagedDrafter

    first = StagedDrafter(draft_model, drafter=LookupDrafter(LENGTH), length=LENGTH)
    return {"drafter": RelayDrafter((first, LENGTH), (LookupDrafter(6), 6)), "rule": "residual"}


def hierarchy(draft_model: Any, num_layers: int) -> Made:
    """Its middle reads the pages that matter most; here it is the target with all layers streaming."""
    from zigzag.generation.drafting import ModelDrafter, StagedDrafter
    from zigzag.plans.layers import LayerPlan

    near = LayerPlan(("streaming",) * num_layers, 16, 1008)
    layers = draft_model.config.num_hidden_layers
    small = ModelDrafter(draft_model, plan=LayerPlan(("streaming",) * layers, 16, 240), stop=2)
    return {"drafter": StagedDrafter(plan=near, drafter=small, length=6), "rule": "residual"}


def retrieval(datastore: Any) -> Made:
    """It drafts a tree of several continuations; here the one that follows most often."""
    from zigzag.generation.drafting import RetrievalDrafter

    return {"drafter": RetrievalDrafter(datastore), "rule": "exact"}


def suffix() -> Made:
    """It drafts a tree; here its best path."""
    from zigzag.generation.drafting import SuffixDrafter

    return {"drafter": SuffixDrafter(), "rule": "exact"}


def mtp(mtp_drafter: Any) -> Made:
    return {"drafter": mtp_drafter, "rule": "residual"}


def of_head(rule: Any = "residual", **options: Any) -> Callable[..., Made]:
    """Drafts of a trained head; options: of the drafter that it is for."""

    def make(head: Any) -> Made:
        from zigzag.generation.drafting import drafter_of

        return {"drafter": drafter_of(head, **no_deeper(head, options)), "rule": rule}

    return make


def no_deeper(head: Any, options: Made) -> Made:
    """The options with a tree that is no deeper than a head drafts in a row; its nodes are sorted by level."""
    from zigzag.generation.drafting.grown import GrownTree
    from zigzag.generation.drafting.trained import most_in_a_row

    if "parents" not in options:
        return options
    if isinstance(options["parents"], GrownTree):
        tree = options["parents"]
        return options | {"parents": replace(tree, depth=min(tree.depth, most_in_a_row(head)))}
    levels = node_depths(options["parents"]) <= most_in_a_row(head)
    return options | {"parents": options["parents"][: int(levels.sum())]}


def grown(head: Any) -> Made:
    """EAGLE-2's tree has 60 nodes of 8 levels, grown 10 wide; this one is for small targets."""
    from zigzag.generation.drafting import GrownTree

    return of_head(parents=GrownTree())(head)


def blockwise(head: Any) -> Made:
    from zigzag.generation.rules import Rule

    return of_head(Rule("top_k", {"k": 2}))(head)


def exits(rule: str, **options: Any) -> Callable[..., Made]:
    """Early exits that stop where the drafter is not sure."""

    def make(head: Any) -> Made:
        from zigzag.generation.drafting import Confidence, drafter_of

        return {"drafter": drafter_of(head, stop=Confidence(0.6, 6), **options), "rule": rule}

    return make


def unverified(head: Any) -> Made:
    """Tokens of early exits stand as they are: each is among so many of the target's likeliest."""
    from zigzag.generation.rules import Rule

    return exits("top_k")(head) | {"rule": Rule("top_k", {"k": 1 << 30})}


def rollback(draft_model: Any) -> Made:
    """Fallback where the small model is below 0.5, rollback where the target gives a draft at most e^-2.

    BiLD is greedy; here the target's own token is drawn, and at temperature 0 this is plain greedy decoding.
    """
    from zigzag.generation.drafting import Certain, ModelDrafter
    from zigzag.generation.rules import Rule

    rule = Rule("typical", {"epsilon": ROLLBACK, "delta": 1e9})  # so that epsilon alone counts
    return {"drafter": ModelDrafter(draft_model, stop=Certain(0.5, 10)), "rule": rule}


def contrastive(draft_model: Any) -> Made:
    """The draft model is the amateur; what is lossless is the contrast of both."""
    from zigzag.generation.contrastive import Contrastive

    return of_small_model()(draft_model) | {"logits_processor": Contrastive(draft_model)}


def phrases(draft_model: Any) -> Made:
    """It verifies several phrases at once; here the newest one."""
    from zigzag.generation.drafting import ModelDrafter, PhraseDrafter, RelayDrafter

    small = ModelDrafter(draft_model, stop=LENGTH)
    return {"drafter": RelayDrafter((small, LENGTH), (PhraseDrafter(5), 5)), "rule": "residual"}


def online(draft_model: Any) -> Made:
    from zigzag.generation.drafting import OnlineDrafter

    return {"drafter": OnlineDrafter(draft_model, stop=LENGTH), "rule": "residual"}
