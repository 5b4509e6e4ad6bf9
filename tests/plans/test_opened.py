"""A plan's file in the place of the plan, wherever one is given, and what is said of a file that holds none."""

from pathlib import Path

import numpy as np
import pytest

from zigzag.plans.heads import HeadPlan
from zigzag.plans.layers import LayerPlan
from zigzag.plans.opened import opened, opened_layers, read_plan
from zigzag.plans.scores import HeadScores
from zigzag.reference.errors import PlanError

PLAN = LayerPlan(("full", "streaming"), 1, 3)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    PLAN.save(tmp_path / "plan.json")
    return tmp_path / "plan.json"


def test_a_name_is_opened_and_a_plan_stays(file: Path) -> None:
    assert opened(file) == opened(str(file)) == opened_layers(str(file)) == read_plan(file) == PLAN
    assert opened(PLAN) is PLAN and opened_layers(PLAN) is PLAN and opened(None) is None
    heads = HeadPlan(((True, False),), 1, 3)
    heads.save(file)
    assert opened(file) == heads
    with pytest.raises(PlanError, match="holds a head-wise plan, needed here: a layer plan"):
        opened_layers(file)


def test_a_file_of_another_kind_says_what_it_holds(file: Path) -> None:
    with pytest.raises(PlanError, match=r"holds a layer plan, needed here: head scores, as made by: zigzag calibrate"):
        HeadScores.load(file)
    HeadScores(np.ones((2, 1)), "example", 1, 3).save(file)
    with pytest.raises(PlanError, match=r"holds head scores, needed here: a layer plan, as made by: zigzag plan"):
        opened(file)
    with pytest.raises(PlanError, match=r"holds head scores, needed here: a head-wise plan"):
        HeadPlan.load(file)


def test_a_missing_file_names_what_is_near(file: Path) -> None:
    with pytest.raises(PlanError, match=r"there is no file .*plam\.json; did you mean .*plan\.json\?"):
        opened(file.with_name("plam.json"))


def test_functions_take_the_file(file: Path) -> None:
    """The same as with the plan itself: `attach`, `generate`, `likelihoods`, `answers`, `calibrate`, `refine_plan`."""
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    from models import random_ids, tiny_llama, tiny_tokenizer

    from zigzag import attach, calibrate, detach, every_plan, generate, refine_plan
    from zigzag.evidence.answering import Asked, answers
    from zigzag.measuring.likelihood import likelihoods
    from zigzag.measuring.prompts import PasskeyPrompt
    from zigzag.running.interception import attachment_of

    model, ids = tiny_llama(2), random_ids(1, 12, 0)
    attach(model, str(file))
    assert attachment_of(model).plan == PLAN
    detach(model)
    row = ids[0].tolist()
    prompts = [PasskeyPrompt(tuple(row[:-2]), tuple(row[-2:]), "", 0.5, 0)]
    asked = [Asked.of({"max_gen_toks": 3, "until": []})]
    for call in (
        lambda plan: generate(model, ids, plan=plan, temperature=0, max_new_tokens=4).sequences,
        lambda plan: likelihoods(model, [(row[:8], row[8:])], plan=plan),
        lambda plan: answers(model, tiny_tokenizer(), [row], asked, plan=plan),
        lambda plan: calibrate(model, sink=1, recent=3, prompts=prompts, plan=plan).values.tolist(),
        lambda plan: refine_plan(model, plan, prompts, budget=2),
        lambda plan: [one.loss for one in every_plan(model, plan, prompts)],
    ):
        assert call(file) == call(str(file)) == call(PLAN)
