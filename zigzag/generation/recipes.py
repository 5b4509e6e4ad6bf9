"""Systems of draft-then-verify decoding as compositions of what `zigzag.generate` has: a drafter, its shape, a rule.

    zigzag.generate(model, input_ids, recipe="medusa")
    zigzag.generate(model, input_ids, **zigzag.recipes.arguments("spectr", draft_model=small))

The rows are those of the survey arXiv 2404.14897 up to its date, and some that came after it. Its own table was not at
hand: sources, shapes and rules are as the systems' papers and code have them. A recipe is a system's drafting and
verifying with this library's parts, not its training, weights or numbers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from zigzag.generation.processors import listed
from zigzag.reference import RULES
from zigzag.reference.errors import ArgumentError
from zigzag.reference.trees import node_depths

Made = dict[str, Any]  # arguments of `generate`
WITH, WITHOUT = "with replacement", "without replacement"
TREE = (-1, -1, 0, 0, 1, 2)  # two tokens deep, mostly; sorted by level, as a drafter wants it
WIDE = (-1, -1, -1, 0, 0, 1, 3, 3, 6)  # three tokens for the next place, fewer for those behind
CHAINS = (-1, -1, -1, 0, 1, 2, 3, 4, 5)  # three side by side
LENGTH = 4


@dataclass(frozen=True)
class Recipe:
    """One system.

    paper: where it is described; source: where drafts come from; shape, termination: of a draft
    rule: by name, as `zigzag.generate` takes it; empty where no rule here is the system's
    make: the arguments of `generate`, of what `needs` names; None: it does not run here, since it `lacks` something
    head: the kind of trained head that it drafts with, as `zigzag.load_head` and `zigzag train-drafter` name it
    own_law: whether what is decoded is a law of its own, for which the rule is lossless
    after: it came after the survey
    """

    paper: str
    source: str
    shape: str
    termination: str
    rule: str
    make: Callable[..., Made] | None = None
    needs: tuple[str, ...] = ()
    lacks: str = ""
    head: str = ""
    own_law: bool = False
    after: bool = False

    @property
    def runs(self) -> bool:
        return self.make is not None

    @property
    def lossless(self) -> bool | None:
        """Whether it emits what the target alone would; None where no rule here is the system's."""
        return RULES[self.rule].lossless and not self.own_law if self.rule else None


def _lookup() -> Made:
    from zigzag.generation.drafting import LookupDrafter

    return {"drafter": LookupDrafter(10), "rule": "exact"}


def _jacobi() -> Made:
    from zigzag.generation.drafting import JacobiDrafter

    return {"drafter": JacobiDrafter(LENGTH), "rule": "exact"}


def _lookahead() -> Made:
    from zigzag.generation.drafting import LookaheadDrafter

    return {"drafter": LookaheadDrafter(), "rule": "residual"}


def _small(rule: str = "residual", **options: Any) -> Callable[..., Made]:
    """Drafts of a small model; options: of ModelDrafter."""

    def make(draft_model: Any) -> Made:
        from zigzag.generation.drafting import ModelDrafter

        return {"drafter": ModelDrafter(draft_model, **{"stop": LENGTH, **options}), "rule": rule}

    return make


_without_replacement = _small(parents=TREE, siblings=WITHOUT)


def _sequoia(draft_model: Any) -> Made:
    """The best tree of 12 for drafts of which the first is right in 6 of 10 cases, the second in 2, the third in 1."""
    from zigzag.reference import best_tree

    parents, _ = best_tree([0.6, 0.2, 0.1], 12)
    return _small(parents=parents, siblings=WITHOUT)(draft_model)


def _streaming(num_layers: int) -> Made:
    from zigzag.generation.drafting import streaming_drafter

    return {"drafter": streaming_drafter(num_layers, stop=LENGTH), "rule": "residual"}


def _skipping(skip: Any) -> Made:
    from zigzag.generation.drafting import Confidence, ModelDrafter

    return {"drafter": ModelDrafter(skip=skip, stop=Confidence(0.6, 8)), "rule": "residual"}


def _staged(draft_model: Any) -> Made:
    from zigzag.generation.drafting import LookupDrafter, StagedDrafter

    return {"drafter": StagedDrafter(draft_model, drafter=LookupDrafter(LENGTH), length=8), "rule": "residual"}


def _cascade(draft_model: Any) -> Made:
    """Both of its cascades: copies draft for the model, and go on behind its tokens."""
    from zigzag.generation.drafting import LookupDrafter, RelayDrafter, StagedDrafter

    first = StagedDrafter(draft_model, drafter=LookupDrafter(LENGTH), length=LENGTH)
    return {"drafter": RelayDrafter((first, LENGTH), (LookupDrafter(6), 6)), "rule": "residual"}


def _hierarchy(draft_model: Any, num_layers: int) -> Made:
    """Its middle reads the pages that matter most; here it is the target with all layers streaming."""
    from zigzag.generation.drafting import ModelDrafter, StagedDrafter
    from zigzag.plans.layers import LayerPlan

    near = LayerPlan(("streaming",) * num_layers, 16, 1008)
    layers = draft_model.config.num_hidden_layers
    small = ModelDrafter(draft_model, plan=LayerPlan(("streaming",) * layers, 16, 240), stop=2)
    return {"drafter": StagedDrafter(plan=near, drafter=small, length=6), "rule": "residual"}


def _retrieval(datastore: Any) -> Made:
    """It drafts a tree of several continuations; here the one that follows most often."""
    from zigzag.generation.drafting import RetrievalDrafter

    return {"drafter": RetrievalDrafter(datastore), "rule": "exact"}


def _suffix() -> Made:
    """It drafts a tree; here its best path."""
    from zigzag.generation.drafting import SuffixDrafter

    return {"drafter": SuffixDrafter(), "rule": "exact"}


def _mtp(mtp_drafter: Any) -> Made:
    return {"drafter": mtp_drafter, "rule": "residual"}


def _head(rule: Any = "residual", **options: Any) -> Callable[..., Made]:
    """Drafts of a trained head; options: of the drafter that it is for."""

    def make(head: Any) -> Made:
        from zigzag.generation.drafting import drafter_of

        return {"drafter": drafter_of(head, **_no_deeper(head, options)), "rule": rule}

    return make


def _no_deeper(head: Any, options: Made) -> Made:
    """The options with a tree that is no deeper than a head drafts in a row; its nodes are sorted by level."""
    from zigzag.generation.drafting.trained import most_in_a_row

    if "parents" not in options:
        return options
    levels = node_depths(options["parents"]) <= most_in_a_row(head)
    return options | {"parents": options["parents"][: int(levels.sum())]}


def _blockwise(head: Any) -> Made:
    from zigzag.generation.rules import Rule

    return _head(Rule("top_k", {"k": 2}))(head)


def _exits(rule: str, **options: Any) -> Callable[..., Made]:
    """Early exits that stop where the drafter is not sure."""

    def make(head: Any) -> Made:
        from zigzag.generation.drafting import Confidence, drafter_of

        return {"drafter": drafter_of(head, stop=Confidence(0.6, 6), **options), "rule": rule}

    return make


def _unverified(head: Any) -> Made:
    """Tokens of early exits stand as they are: each is among so many of the target's likeliest."""
    from zigzag.generation.rules import Rule

    return _exits("top_k")(head) | {"rule": Rule("top_k", {"k": 1 << 30})}


def _rollback(draft_model: Any) -> Made:
    """Fallback where the small model is below 0.5, rollback where the target gives a draft at most e^-2.

    BiLD is greedy; here the target's own token is drawn, and at temperature 0 this is plain greedy decoding.
    """
    from zigzag.generation.drafting import Certain, ModelDrafter
    from zigzag.generation.rules import Rule

    rule = Rule("typical", {"epsilon": ROLLBACK, "delta": 1e9})  # so that epsilon alone counts
    return {"drafter": ModelDrafter(draft_model, stop=Certain(0.5, 10)), "rule": rule}


def _contrastive(draft_model: Any) -> Made:
    """The draft model is the amateur; what is lossless is the contrast of both."""
    from zigzag.generation.contrastive import Contrastive

    return _small()(draft_model) | {"logits_processor": Contrastive(draft_model)}


def _phrases(draft_model: Any) -> Made:
    """It verifies several phrases at once; here the newest one."""
    from zigzag.generation.drafting import ModelDrafter, PhraseDrafter, RelayDrafter

    small = ModelDrafter(draft_model, stop=LENGTH)
    return {"drafter": RelayDrafter((small, LENGTH), (PhraseDrafter(5), 5)), "rule": "residual"}


def _online(draft_model: Any) -> Made:
    from zigzag.generation.drafting import OnlineDrafter

    return {"drafter": OnlineDrafter(draft_model, stop=LENGTH), "rule": "residual"}


DRAFT, HEAD = ("draft_model",), ("head",)
ROLLBACK = 0.1353352832366127  # e^-2
BRANCHES = (-1, -1, -1)
WHERE = {  # what a recipe needs comes from
    "draft_model": "a model with the target's vocabulary, or zigzag train-drafter student",
    "head": "zigzag.load_head, zigzag train-drafter",
    "num_layers": "of the target",
    "skip": "layers, by zigzag.measuring.skipping.choose_skipped",
    "mtp_drafter": "MtpDrafter over the layer that zigzag.load gives",
    "datastore": "zigzag datastore build, Datastore.open",
}
RECIPES: Mapping[str, Recipe] = {
    "blockwise": Recipe(
        "1811.03115", "heads of the target", "chain", "fixed", "top_k", _blockwise, HEAD, head="blockwise"
    ),
    "specdec": Recipe(
        "2203.16487",
        "a model that drafts in parallel",
        "chain",
        "fixed",
        "",
        lacks="its Spec-Drafter, an encoder and decoder of its own, and its rule",
    ),
    "speculative-decoding": Recipe("2211.17192", "small model", "chain", "fixed", "residual", _small(), DRAFT),
    "speculative-sampling": Recipe("2302.01318", "small model", "chain", "fixed", "residual", _small(), DRAFT),
    "bild": Recipe("2302.07863", "small model", "chain", "confidence", "typical", _rollback, DRAFT),
    "llma": Recipe("2304.04487", "the text itself", "chain", "fixed", "exact", _lookup),
    "specinfer": Recipe(
        "2305.09781",
        "small model (it merges several)",
        "tree",
        "fixed",
        "residual",
        _small(parents=TREE, siblings=WITH),
        DRAFT,
    ),
    "jacobi": Recipe("2305.10427", "the target's guesses", "chain", "fixed", "exact", _jacobi),
    "ppd": Recipe(
        "2307.05908", "early exit", "branches", "fixed", "residual", _head(parents=BRANCHES), HEAD, head="exit"
    ),
    "staged": Recipe("2308.04623", "small model, copies for it", "chain", "fixed", "residual", _staged, DRAFT),
    "draft-and-verify": Recipe(
        "2309.08168", "the target without layers", "chain", "confidence", "residual", _skipping, ("skip",)
    ),
    "online-sd": Recipe("2310.07177", "small model that learns", "chain", "fixed", "residual", _online, DRAFT),
    "distillspec": Recipe(
        "2310.08461", "distilled model", "chain", "fixed", "residual", _head(stop=LENGTH), HEAD, head="student"
    ),
    "speed": Recipe("2310.12072", "early exit", "chain", "fixed", "exact", _head("exact"), HEAD, head="exit"),
    "free": Recipe("EMNLP 2023", "early exit", "chain", "confidence", "top_k", _unverified, HEAD, head="exit"),
    "spectr": Recipe(
        "2310.15141",
        "small model",
        "chains side by side",
        "fixed",
        "k_seq",
        _small("k_seq", parents=CHAINS, siblings=WITH),
        DRAFT,
    ),
    "rest": Recipe("2311.08252", "a datastore", "chain", "fixed", "exact", _retrieval, ("datastore",)),
    "scd": Recipe("2311.08981", "small model", "chain", "fixed", "residual", _contrastive, DRAFT, own_law=True),
    "pass": Recipe("2311.13581", "look-ahead tokens", "chain", "fixed", "residual", _head(), HEAD, head="pass"),
    "cs-drafting": Recipe(
        "2312.11462", "small model, copies for it and behind it", "chain", "schedule", "residual", _cascade, DRAFT
    ),
    "mcsd": Recipe("2401.06706", "small model", "tree", "fixed", "residual", _without_replacement, DRAFT),
    "medusa": Recipe(
        "2401.10774", "heads of the target", "tree", "fixed", "residual", _head(parents=WIDE), HEAD, head="medusa"
    ),
    "bita": Recipe(
        "2401.12522", "look-ahead tokens", "tree", "fixed", "residual", _head(parents=WIDE), HEAD, head="pass"
    ),
    "eagle": Recipe(
        "2401.15077",
        "a head on the target's states",
        "tree",
        "fixed",
        "residual",
        _head(parents=WIDE, siblings=WITHOUT),
        HEAD,
        head="eagle",
    ),
    "glide": Recipe(
        "2402.02082",
        "small model on the target's KV",
        "tree",
        "confidence",
        "residual",
        lacks="a small model with cross attention to the target's cache, such as its authors' GLIDE weights",
    ),
    "lookahead": Recipe("2402.02057", "the target's guesses", "tree", "fixed", "residual", _lookahead),
    "hydra": Recipe(
        "2402.05109", "heads in a row", "tree", "fixed", "residual", _head(parents=WIDE), HEAD, head="hydra"
    ),
    "sequoia": Recipe("2402.12374", "small model", "best tree", "fixed", "residual", _sequoia, DRAFT),
    "ouroboros": Recipe("2402.13720", "small model, phrases", "chain", "fixed", "residual", _phrases, DRAFT),
    "rsd": Recipe("2402.14160", "small model", "tree", "fixed", "residual", _without_replacement, DRAFT),
    "triforce": Recipe(
        "2404.11912",
        "the target streaming, a small model streaming for it",
        "chain",
        "fixed",
        "residual",
        _hierarchy,
        ("draft_model", "num_layers"),
    ),
    "kangaroo": Recipe(
        "2404.18911", "early exit with an adapter", "chain", "confidence", "exact", _exits("exact"), HEAD, head="exit"
    ),
    "streaming": Recipe(
        "2508.12407",
        "the target, all layers streaming",
        "chain",
        "fixed",
        "residual",
        _streaming,
        ("num_layers",),
        after=True,
    ),
    "mtp": Recipe(
        "2508.06471", "GLM-4.5's MTP layer", "chain", "fixed", "residual", _mtp, ("mtp_drafter",), after=True
    ),
    "suffix-decoding": Recipe(
        "2411.04975", "this text and earlier ones", "chain", "agreement", "exact", _suffix, after=True
    ),
    "block-verification": Recipe(
        "2403.10444", "small model", "chain", "fixed", "block", _small("block"), DRAFT, after=True
    ),
}


def arguments(name: str, model: Any = None, **given: Any) -> Made:
    """What `zigzag.generate` is called with for a recipe.

    model: the target, for which what is not given is looked for: its number of layers, a trained head, and, where a
        draft model is needed, the `student` trained for it
    given: what the recipe `needs`: draft_model (a transformers model with the target's vocabulary), num_layers (of the
        target), skip (layers, as `zigzag.measuring.skipping.choose_skipped` finds them), mtp_drafter (`MtpDrafter`),
        datastore (`zigzag.generation.datastore.Datastore`), head (`zigzag.load_head` gives it)

    Raises ArgumentError for an unknown recipe, one that does not run here, and for too little or too much given;
    ModelError where a head is to be looked for and there is none.
    """
    recipe, make = one_that_runs(name)
    if model is not None:
        given = found(recipe, model, given) | given
    if given.keys() != set(recipe.needs):
        needs = ", ".join(f"{need} ({WHERE[need]})" for need in recipe.needs)
        raise ArgumentError(
            f"recipes: {name} needs {needs or 'nothing'}, got {', '.join(given) or 'nothing'}; give it by "
            f"generate(..., **arguments({name!r}, ...)) of zigzag.recipes"
        )
    return make(**given)


def one_that_runs(name: str) -> tuple[Recipe, Callable[..., Made]]:
    """The recipe and what makes its arguments; ArgumentError for an unknown one and for one that does not run here."""
    recipe = RECIPES.get(name) if isinstance(name, str) else None
    if recipe is None:
        near = get_close_matches(str(name), RECIPES, 1, 0.7)
        meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(RECIPES)}"
        raise ArgumentError(f"recipes: there is no {name!r}; {meant}")
    if recipe.make is None:
        runs = ", ".join(other for other, row in RECIPES.items() if row.runs)
        raise ArgumentError(f"recipes: {name} does not run here, it lacks {recipe.lacks}; there are {runs}")
    return recipe, recipe.make


def found(recipe: Recipe, model: Any, given: Mapping[str, Any]) -> Made:
    """What can be found for a model of what a recipe needs and was not given."""
    from zigzag.models.draft_heads.files import load_head
    from zigzag.running.model_layers import layers_of

    missing = [need for need in recipe.needs if need not in given]
    ways: dict[str, Callable[[], Any]] = {
        "num_layers": lambda: len(layers_of(model).full),
        "head": lambda: load_head(recipe.head, model),
        "draft_model": lambda: load_head("student", model),
    }
    return {need: ways[need]() for need in missing if need in ways}


def cooked(name: str, model: Any, drafter: Any, rule: Any, processors: Any) -> tuple[Any, Any, Any]:
    """(drafter, rule, logits processors) of `generate(recipe=name)`, beside the caller's processors.

    Raises ArgumentError where a drafter or a rule is given too.
    """
    if drafter is not None or rule is not None:
        raise ArgumentError("generate: recipe= stands for drafter= and rule=; give one or the other")
    made = arguments(name, model)
    own = made.get("logits_processor")
    every = processors if own is None else [*listed("logits_processor", processors), own]
    return made["drafter"], made["rule"], every
