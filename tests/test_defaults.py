"""The same defaults from Python and on the command line, and docs/defaults.md as the code has them."""

import inspect
import re
from collections.abc import Callable
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("typer", reason="typer is not installed")

import zigzag
from zigzag import defaults
from zigzag.cli import app as cli
from zigzag.evidence import harness
from zigzag.generation.generate import generate
from zigzag.generation.rules import Rule
from zigzag.measuring.calibration import calibrate
from zigzag.measuring.refinement import refine_plan
from zigzag.plans.kv_size import kv_bytes
from zigzag.plans.layers import make_plan
from zigzag.reference import RULES
from zigzag.running.attach import attach
from zigzag.training.heads.config import HeadTraining
from zigzag.training.recovery.config import RecoveryTraining

PAGE = Path(__file__).resolve().parents[1] / "docs" / "defaults.md"
OWN = {"model", "device", "out", "plan", "resume", "seconds"}  # what only a command has, or has in another form
PAIRS: list[tuple[Callable[..., Any], Any, dict[str, str], set[str]]] = [
    # command, function or class, other names there, options that say the same by other means
    (cli.generate, generate, {"new_tokens": "max_new_tokens"}, {"drafter", "rule"}),
    (cli.plan, make_plan, {}, {"scores"}),
    (cli.refine, refine_plan, {}, {"prompts"}),
    (cli.calibrate, calibrate, {}, {"sink", "recent", "prompts", "length", "seed"}),
    (cli.evaluate, harness.evaluate, {}, {"apply_chat_template"}),
    (cli.recover, RecoveryTraining, {}, set()),
    (cli.train_drafter, HeadTraining, {"size": "sizes"}, {"size", "kinds"}),
]


def values(of: Any) -> dict[str, Any]:
    if inspect.isclass(of):
        return {field.name: field.default for field in fields(of)}
    return {name: one.default for name, one in inspect.signature(of).parameters.items()}


def plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def differences(command: Any, function: Any, names: dict[str, str], apart: set[str]) -> dict[str, tuple[Any, Any]]:
    there = values(function)
    shared = {n: plain(v) for n, v in values(command).items() if names.get(n, n) in there and n not in OWN | apart}
    assert shared, "nothing was compared"
    return {n: (v, there[names.get(n, n)]) for n, v in shared.items() if v != there[names.get(n, n)]}


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0].__name__)
def test_command_and_function_agree(pair: Any) -> None:
    assert differences(*pair) == {}


def test_a_difference_is_noticed() -> None:
    def command(temperature: float = 0.0, seed: int = 0) -> None: ...

    assert differences(command, generate, {}, set()) == {"temperature": (0.0, None)}


def test_the_rest_is_read_from_one_place() -> None:
    given, rule = values(generate), values(cli.generate)["rule"]
    assert given["spare"] == values(attach)["spare"] == defaults.SPARE == 64
    assert values(make_plan)["spare"] == values(kv_bytes)["spare"] == values(cli.plan)["spare"] == defaults.SPARE
    assert plain(rule) == defaults.RULE and given["rule"] is None and given["seed"] == defaults.SEED
    assert values(cli.calibrate)["method"].value == values(calibrate)["method"]


def test_the_page_has_the_values() -> None:
    text = PAGE.read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| `([A-Z_]+)` \| `?([^|`]+?)`? \|", text, re.MULTILINE))
    own = {name: value for name, value in vars(defaults).items() if name.isupper()}
    assert table == {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in own.items()}
    rows = re.findall(r"^\| `(\w+)` \| (`[^|]+=[^|]+`) \|$", text, re.MULTILINE)
    assert {name: told.strip("`") for name, told in rows} == {
        name: ", ".join(f"{option}={value}" for option, value in {**rule.defaults, **rule.required}.items())
        for name, rule in RULES.items()
        if rule.defaults or rule.required
    }


def test_rules_by_name_run_with_the_tables_values() -> None:
    from models import random_ids, tiny_llama

    model, ids = tiny_llama(2), random_ids(1, 8, 0)
    options = {"drafter": "lookup", "max_new_tokens": 6, "temperature": 1.0}
    named = zigzag.generate(model, ids, rule="top_k", **options).sequences
    assert named == zigzag.generate(model, ids, rule=Rule("top_k", {"k": 10}), **options).sequences
