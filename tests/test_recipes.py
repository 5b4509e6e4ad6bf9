"""Every row of the survey's table that runs is tested by being there; the others say what they lack."""

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from generations import LAYERS, PLANS, near, prompts, target
from typer.testing import CliRunner

from zigzag import ArgumentError, generate
from zigzag.cli.app import app
from zigzag.generation.datastore import Datastore, build
from zigzag.generation.rules import Rule
from zigzag.recipes import RECIPES, arguments
from zigzag.reference import RULES

ROOT = Path(__file__).resolve().parents[1]
RUNS = [name for name, recipe in RECIPES.items() if recipe.runs and "mtp_drafter" not in recipe.needs]


def made(name: str, model: Any) -> dict[str, Any]:
    given = {"draft_model": near(model), "num_layers": LAYERS, "skip": (2,), "datastore": what_comes(model)}
    return arguments(name, **{need: given[need] for need in RECIPES[name].needs})


@cache
def what_comes(model: Any) -> Datastore:
    """What the model writes, so that something of it is accepted."""
    tokenizer = SimpleNamespace(get_vocab=lambda: {"a": 0})
    return build(generate(model, prompts(), temperature=0, max_new_tokens=24).sequences, tokenizer)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", RUNS)
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
    assert options["rule"] == recipe.rule and recipe.lossless is Rule(recipe.rule).lossless
    assert (getattr(options["drafter"], "parents", None) is not None) == (recipe.shape != "chain")
    assert generate(model, prompts()[:1], **options, temperature=0.9, seed=1, max_new_tokens=6).new_tokens[0]


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
        ("medusaa", {}, "none of blockwise"),
        ("medusa", {}, "lacks trained heads"),
        ("spectr", {}, "needs draft_model, got nothing"),
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
