"""Every row of the survey's table that runs is tested by being there; the others say what they lack."""

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from draft_heads import random_head
from generations import LAYERS, PLANS, near, prompts, target
from typer.testing import CliRunner

from zigzag import ArgumentError, ModelError, generate
from zigzag.cli.app import app
from zigzag.generation.datastore import Datastore, build
from zigzag.generation.rules import as_rule
from zigzag.models.draft_heads.files import save_head
from zigzag.models.draft_heads.kinds import KINDS
from zigzag.recipes import RECIPES, arguments
from zigzag.reference import RULES

ROOT = Path(__file__).resolve().parents[1]
RUNS = [name for name, recipe in RECIPES.items() if recipe.runs and "mtp_drafter" not in recipe.needs]


ALIKE = [name for name in RUNS if RECIPES[name].lossless or name == "bild"]  # at temperature 0


def made(name: str, model: Any) -> dict[str, Any]:
    recipe = RECIPES[name]
    given = {"num_layers": LAYERS, "skip": (2,)}
    if "datastore" in recipe.needs:
        given["datastore"] = what_comes(model)
    if "draft_model" in recipe.needs:
        given["draft_model"] = near(model)
    if recipe.head:
        given["head"] = random_head(recipe.head, model)
    return arguments(name, **{need: given[need] for need in recipe.needs})


@cache
def what_comes(model: Any) -> Datastore:
    """What the model writes, so that something of it is accepted."""
    tokenizer = SimpleNamespace(get_vocab=lambda: {"a": 0})
    return build(generate(model, prompts(), temperature=0, max_new_tokens=24).sequences, tokenizer)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", ALIKE)
def test_greedy_tokens_are_those_of_plain_decoding(name: str, plan: str) -> None:
    model = target()
    options: dict[str, Any] = {"plan": PLANS[plan], "temperature": 0, "max_new_tokens": 24}
    drafted = generate(model, prompts(), **made(name, model), **options)
    assert drafted.sequences == generate(model, prompts(), **options).sequences
    assert sum(drafted.statistics.reached) > 0


@pytest.mark.parametrize("name", RUNS)
def test_what_is_said_is_what_is_made(name: str) -> None:
    recipe, model = RECIPES[name], target()
    options = made(name, model)
    rule = as_rule(options["rule"])
    assert rule.name == recipe.rule and recipe.lossless is (rule.lossless and not recipe.own_law)
    assert recipe.own_law == ("logits_processor" in options)
    assert (getattr(options["drafter"], "parents", None) is not None) == (recipe.shape != "chain")
    assert generate(model, prompts()[:1], **options, temperature=0.9, seed=1, max_new_tokens=6).new_tokens[0]


@pytest.mark.parametrize("name", ["blockwise", "free"])
def test_what_is_lossy_may_write_something_else(name: str) -> None:
    """Every draft of a third model is taken by one, most by the other: else these rows would be lossless by mistake."""
    model = target()
    drafted = generate(model, prompts(), **made(name, model), temperature=0, max_new_tokens=24)
    assert drafted.sequences != generate(model, prompts(), temperature=0, max_new_tokens=24).sequences
    if name == "free":
        assert drafted.statistics.acceptance == 1


def test_a_recipe_by_name_finds_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads where `train-drafter` leaves them; a draft model is the student."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = target()
    with pytest.raises(ModelError, match=r"no medusa head .* zigzag train-drafter medusa"):
        generate(model, prompts(), recipe="medusa", temperature=0, max_new_tokens=4)
    for kind in ("medusa", "student"):
        head = random_head(kind, model)
        save_head(head, kind, KINDS[kind].sizes(model), model, tmp_path / "zigzag/heads/any" / kind)
    plain = generate(model, prompts(), temperature=0, max_new_tokens=12)
    for name in ("medusa", "rsd", "streaming", "llma", "scd"):
        found = generate(model, prompts(), recipe=name, temperature=0, max_new_tokens=12)
        assert (found.sequences == plain.sequences) == (name != "scd") and sum(found.statistics.drafted) > 0
    for other in ({"drafter": "lookup"}, {"rule": "exact"}):
        with pytest.raises(ArgumentError, match="one or the other"):
            generate(model, prompts(), recipe="llma", **other)
    with pytest.raises(ArgumentError, match=r"needs datastore .zigzag datastore build.*, got nothing"):
        generate(model, prompts(), recipe="rest")


def test_the_callers_processors_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside that of a recipe."""
    model, seen = target(), []
    made_ = {"drafter": None, "rule": "residual", "logits_processor": lambda ids, scores: scores}
    monkeypatch.setattr("zigzag.generation.recipes.arguments", lambda name, model: made_)

    def own(ids: Any, scores: Any) -> Any:
        seen.append(len(ids))
        return scores

    generate(model, prompts()[:1], recipe="scd", logits_processor=own, temperature=0, max_new_tokens=3)
    assert len(seen) == 3


def test_the_table_is_whole() -> None:
    """32 systems up to the survey; what does not run says why, what runs does not."""
    assert sum(not recipe.after for recipe in RECIPES.values()) == 32
    for name, recipe in RECIPES.items():
        assert recipe.runs != bool(recipe.lacks), name
        assert recipe.rule in ("", *RULES) and recipe.paper and recipe.source and recipe.shape, name
        assert not (recipe.needs and not recipe.runs), name


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        ("medusaa", {}, "no 'medusaa'; did you mean medusa\\?"),
        ("glide", {}, "lacks a small model with cross attention"),
        ("medusa", {}, "needs head .zigzag.load_head, zigzag train-drafter., got nothing; give it by"),
        ("spectr", {}, "needs draft_model .*, got nothing"),
        ("jacobi", {"draft_model": 1}, "needs nothing, got draft_model"),
    ],
)
def test_what_cannot_be(name: str, given: dict[str, Any], told: str) -> None:
    with pytest.raises(ArgumentError, match=told):
        arguments(name, **given)


def test_the_page_is_what_the_command_prints() -> None:
    printed = CliRunner().invoke(app, ["recipes", "--markdown"]).output
    assert printed == (ROOT / "docs/survey.md").read_text(encoding="utf-8")
    listed = CliRunner().invoke(app, ["recipes"]).output
    assert all(name in listed for name in RECIPES)


def test_claims_stand_below_the_table() -> None:
    page = (ROOT / "docs/survey.md").read_text(encoding="utf-8")
    claims = {name: recipe.claim for name, recipe in RECIPES.items() if recipe.claim}
    assert len(claims) >= 3 and all(f"- `{name}`: {claim}\n" in page for name, claim in claims.items())
    assert "none of it is a number of this library" in page.partition("What their authors measured")[2]


def test_a_head_of_another_kind_is_refused() -> None:
    heads = {kind: random_head(kind, target()) for kind in KINDS}
    with_head = [name for name, recipe in RECIPES.items() if recipe.head]
    assert {RECIPES[name].head for name in with_head} == set(KINDS)
    for name in with_head:
        for kind, head in heads.items():
            if kind == RECIPES[name].head:
                arguments(name, head=head)
                continue
            with pytest.raises(
                ArgumentError, match=rf"{name} drafts with a head of the kind '{RECIPES[name].head}', got"
            ):
                arguments(name, head=head)
    with pytest.raises(ArgumentError, match="got str"):
        arguments("distillspec", head="student")


def test_a_recipe_says_itself_how_far_it_drafts() -> None:
    options: dict[str, Any] = {"recipe": "llma", "temperature": 0, "max_new_tokens": 3}
    assert generate(target(), prompts()[:1], num_draft_tokens=10, **options)  # what it drafts anyway
    with pytest.raises(
        ArgumentError, match=r"LookupDrafter drafts up to 10 tokens.*num_draft_tokens=3 would do nothing"
    ):
        generate(target(), prompts()[:1], num_draft_tokens=3, **options)
