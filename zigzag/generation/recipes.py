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

from zigzag.generation import recipe_makers as makers
from zigzag.generation.callables import listed
from zigzag.generation.recipe_makers import Made
from zigzag.reference import RULES
from zigzag.reference.errors import ArgumentError


@dataclass(frozen=True)
class Recipe:
    """One system.

    paper: where it is described; source: where drafts come from; shape, termination: of a draft
    rule: by name, as `zigzag.generate` takes it; empty where no rule here is the system's
    make: the arguments of `generate`, of what `needs` names; None: it does not run here, since it `lacks` something
    head: the kind of trained head that it drafts with, as `zigzag.load_head` and `zigzag train-drafter` name it
    own_law: whether what is decoded is a law of its own, for which the rule is lossless
    after: it came after the survey
    claim: what its authors measured, where that is known here
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
    claim: str = ""

    @property
    def runs(self) -> bool:
        return self.make is not None

    @property
    def lossless(self) -> bool | None:
        """Whether it emits what the target alone would; None where no rule here is the system's."""
        return RULES[self.rule].lossless and not self.own_law if self.rule else None


DRAFT, HEAD = ("draft_model",), ("head",)
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
        "1811.03115", "heads of the target", "chain", "fixed", "top_k", makers.blockwise, HEAD, head="blockwise"
    ),
    "specdec": Recipe(
        "2203.16487",
        "a model that drafts in parallel",
        "chain",
        "fixed",
        "",
        lacks="its Spec-Drafter, an encoder and decoder of its own, and its rule",
    ),
    "speculative-decoding": Recipe(
        "2211.17192", "small model", "chain", "fixed", "residual", makers.of_small_model(), DRAFT
    ),
    "speculative-sampling": Recipe(
        "2302.01318", "small model", "chain", "fixed", "residual", makers.of_small_model(), DRAFT
    ),
    "bild": Recipe("2302.07863", "small model", "chain", "confidence", "typical", makers.rollback, DRAFT),
    "llma": Recipe("2304.04487", "the text itself", "chain", "fixed", "exact", makers.lookup),
    "specinfer": Recipe(
        "2305.09781",
        "small model (it merges several)",
        "tree",
        "fixed",
        "residual",
        makers.of_small_model(parents=makers.TREE, siblings=makers.WITH),
        DRAFT,
    ),
    "jacobi": Recipe("2305.10427", "the target's guesses", "chain", "fixed", "exact", makers.jacobi),
    "ppd": Recipe(
        "2307.05908", "early exit", "branches", "fixed", "residual", makers.of_head(parents=BRANCHES), HEAD, head="exit"
    ),
    "staged": Recipe("2308.04623", "small model, copies for it", "chain", "fixed", "residual", makers.staged, DRAFT),
    "draft-and-verify": Recipe(
        "2309.08168", "the target without layers", "chain", "confidence", "residual", makers.skipping, ("skip",)
    ),
    "online-sd": Recipe("2310.07177", "small model that learns", "chain", "fixed", "residual", makers.online, DRAFT),
    "distillspec": Recipe(
        "2310.08461",
        "distilled model",
        "chain",
        "fixed",
        "residual",
        makers.of_head(stop=makers.LENGTH),
        HEAD,
        head="student",
    ),
    "speed": Recipe("2310.12072", "early exit", "chain", "fixed", "exact", makers.of_head("exact"), HEAD, head="exit"),
    "free": Recipe("EMNLP 2023", "early exit", "chain", "confidence", "top_k", makers.unverified, HEAD, head="exit"),
    "spectr": Recipe(
        "2310.15141",
        "small model",
        "chains side by side",
        "fixed",
        "k_seq",
        makers.of_small_model("k_seq", parents=makers.CHAINS, siblings=makers.WITH),
        DRAFT,
    ),
    "rest": Recipe("2311.08252", "a datastore", "chain", "fixed", "exact", makers.retrieval, ("datastore",)),
    "scd": Recipe("2311.08981", "small model", "chain", "fixed", "residual", makers.contrastive, DRAFT, own_law=True),
    "pass": Recipe(
        "2311.13581", "look-ahead tokens", "chain", "fixed", "residual", makers.of_head(), HEAD, head="pass"
    ),
    "cs-drafting": Recipe(
        "2312.11462", "small model, copies for it and behind it", "chain", "schedule", "residual", makers.cascade, DRAFT
    ),
    "mcsd": Recipe("2401.06706", "small model", "tree", "fixed", "residual", makers.without_replacement, DRAFT),
    "medusa": Recipe(
        "2401.10774",
        "heads of the target",
        "tree",
        "fixed",
        "residual",
        makers.of_head(parents=makers.WIDE),
        HEAD,
        head="medusa",
    ),
    "bita": Recipe(
        "2401.12522",
        "look-ahead tokens",
        "tree",
        "fixed",
        "residual",
        makers.of_head(parents=makers.WIDE),
        HEAD,
        head="pass",
    ),
    "eagle": Recipe(
        "2401.15077",
        "a head on the target's states",
        "tree",
        "fixed",
        "residual",
        makers.of_head(parents=makers.WIDE, siblings=makers.WITHOUT),
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
    "lookahead": Recipe("2402.02057", "the target's guesses", "tree", "fixed", "residual", makers.lookahead),
    "hydra": Recipe(
        "2402.05109",
        "heads in a row",
        "tree",
        "fixed",
        "residual",
        makers.of_head(parents=makers.WIDE),
        HEAD,
        head="hydra",
    ),
    "sequoia": Recipe("2402.12374", "small model", "best tree", "fixed", "residual", makers.sequoia, DRAFT),
    "ouroboros": Recipe("2402.13720", "small model, phrases", "chain", "fixed", "residual", makers.phrases, DRAFT),
    "rsd": Recipe("2402.14160", "small model", "tree", "fixed", "residual", makers.without_replacement, DRAFT),
    "triforce": Recipe(
        "2404.11912",
        "the target streaming, a small model streaming for it",
        "chain",
        "fixed",
        "residual",
        makers.hierarchy,
        ("draft_model", "num_layers"),
        claim="2.2 times plain decoding on one A100, a 68M drafter, prompts to 125K tokens",
    ),
    "kangaroo": Recipe(
        "2404.18911",
        "early exit with an adapter",
        "chain",
        "confidence",
        "exact",
        makers.exits("exact"),
        HEAD,
        head="exit",
    ),
    "streaming": Recipe(
        "2508.12407",
        "the target, all layers streaming",
        "chain",
        "fixed",
        "residual",
        makers.streaming,
        ("num_layers",),
        after=True,
        claim="1,600 tokens/s where plain decoding gave 1,000: Qwen3-8B, one H100, AIME25, 4 drafts (vLLM RFC 47351)",
    ),
    "mtp": Recipe(
        "2508.06471",
        "GLM-4.5's MTP layer",
        "chain",
        "fixed",
        "residual",
        makers.mtp,
        ("mtp_drafter",),
        after=True,
        claim="85 to 90% of second tokens accepted, 1.8 times the tokens a second (DeepSeek-V3's layer, its report)",
    ),
    "eagle-2": Recipe(
        "2406.16858",
        "a head on the target's states",
        "tree, each round's another",
        "likeliest paths",
        "residual",
        makers.grown,
        HEAD,
        head="eagle",
        after=True,
    ),
    "eagle-3": Recipe(
        "2503.01840",
        "a head on several of the target's states",
        "tree, each round's another",
        "likeliest paths",
        "residual",
        lacks="heads that read several layers, such as its authors' EAGLE-3 weights",
        after=True,
    ),
    "suffix-decoding": Recipe(
        "2411.04975", "this text and earlier ones", "chain", "agreement", "exact", makers.suffix, after=True
    ),
    "traversal-verification": Recipe(
        "2505.12398",
        "small model",
        "tree",
        "fixed",
        "traversal",
        makers.of_small_model("traversal", parents=makers.TREE, siblings=makers.WITHOUT),
        DRAFT,
        after=True,
    ),
    "block-verification": Recipe(
        "2403.10444", "small model", "chain", "fixed", "block", makers.of_small_model("block"), DRAFT, after=True
    ),
}


def arguments(name: str, model: Any = None, **given: Any) -> Made:
    """What `zigzag.generate` is called with for a recipe.

    model: the target, for which what is not given is looked for: its number of layers, a trained head, and, where a
        draft model is needed, the `student` trained for it
    given: what the recipe `needs`: draft_model (a transformers model with the target's vocabulary), num_layers (of the
        target), skip (layers, as `zigzag.measuring.skipping.choose_skipped` finds them), mtp_drafter (`MtpDrafter`),
        datastore (`zigzag.generation.datastore.Datastore`), head (`zigzag.load_head` gives it)

    Raises ArgumentError for an unknown recipe, one that does not run here, for too little or too much given, and for a
    head of another kind;
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
    if "head" in given:
        _check_head(name, recipe, given["head"])
    return make(**given)


def _check_head(name: str, recipe: Recipe, head: Any) -> None:
    """ArgumentError for a head of another kind than the system's."""
    from zigzag.models.draft_heads.kinds import is_of_kind

    if not is_of_kind(head, recipe.head):
        raise ArgumentError(
            f"recipes: {name} drafts with a head of the kind {recipe.head!r}, got {type(head).__name__}; give "
            f"zigzag.load_head({recipe.head!r}, model), or train one: zigzag train-drafter {recipe.head}"
        )


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
