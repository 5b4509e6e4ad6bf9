"""lm-eval's tasks under a plan, beside lm-eval's own runner; what is refused before a model is loaded."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from models import tiny_llama, tiny_tokenizer

from zigzag import ArgumentError, ModelError, ZigzagError
from zigzag.evidence import harness
from zigzag.plans.layers import LayerPlan
from zigzag.running.attach import attach, detach

ROOT = Path(__file__).resolve().parents[2]
WITH = pytest.mark.usefixtures("lm_eval")
PLAN = LayerPlan(("streaming", "full", "streaming"), 2, 6)
CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if enable_thinking is defined and not enable_thinking %}"
    "<think></think>{% endif %}{% endif %}"
)
TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {folder}/data.jsonl}}
test_split: test
fewshot_split: test
output_type: {kind}
doc_to_text: {text}
doc_to_target: {target}
metric_list:
"""
METRICS = {
    "multiple_choice": "  - metric: acc\ndoc_to_choice: '{{choices}}'\n",
    "loglikelihood_rolling": "  - metric: bits_per_byte\n",
    "generate_until": "  - metric: exact_match\ngeneration_kwargs: {until: [';'], max_gen_toks: 6}\n",
}
DATA = [
    {"q": "to be or not to", "choices": [" be", " sleep", " go"], "right": 0},
    {"q": "once upon a", "choices": [" hill", " time"], "right": 1},
    {"q": "a b c d e f g", "choices": [" h", " nothing at all"], "right": 0},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a task of each kind."""
    where = tmp_path_factory.mktemp("tasks")
    (where / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in DATA))
    for kind, metrics in METRICS.items():
        text = "''" if kind == "loglikelihood_rolling" else "'{{q}}'"
        target = "'{{q}}'" if kind == "loglikelihood_rolling" else "'{{right}}'"
        if kind == "multiple_choice":
            target = "right"
        head = TASK.format(name=f"own_{kind}", folder=where, kind=kind, text=text, target=target)
        (where / f"{kind}.yaml").write_text(head + metrics)
    return where


@pytest.fixture
def lm_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its data elsewhere; what it finds out about the machine, which takes seconds, is left out."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'zigzag-attention[eval]'")
    import datasets
    from lm_eval import evaluator

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setattr(evaluator, "add_env_info", lambda results: None)


def pair(template: str | None = None) -> tuple[Any, Any]:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.add_special_tokens({"eos_token": "<eos>", "pad_token": "<pad>"})
    tokenizer.chat_template = template
    return tiny_llama(vocab_size=300, eos_token_id=tokenizer.eos_token_id), tokenizer


def results_of(pair: tuple[Any, Any], tasks: harness.Tasks, **options: Any) -> harness.Results:
    return harness.evaluate(*pair, tasks, **{"bootstrap_iters": 0} | options)


def opened(folder: Path, *kinds: str, **options: Any) -> harness.Tasks:
    return harness.open_tasks([f"own_{kind}" for kind in kinds or METRICS], folder, **options)


@WITH
def test_it_is_lm_evals_own_runner_under_the_same_plan(folder: Path) -> None:
    """Theirs calls the attached model itself, row by row."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = pair()
    for plan in (None, PLAN):
        ours = results_of((model, tokenizer), opened(folder), plan=plan, batch_size=3, num_fewshot=1)
        if plan is not None:
            attach(model, plan)
        theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)
        tasks = opened(folder)
        found = simple_evaluate(
            theirs,
            tasks=list(tasks.roots),
            task_manager=tasks.manager,
            num_fewshot=1,
            log_samples=False,
            fewshot_as_multiturn=False,
            bootstrap_iters=0,
            random_seed=harness.SEED,
        )
        if plan is not None:
            detach(model)
        assert set(ours["results"]) == set(found["results"]) == {f"own_{kind}" for kind in METRICS}
        for task, numbers in found["results"].items():
            mine = ours["results"][task]
            assert mine.keys() == numbers.keys()
            for name, number in numbers.items():
                assert mine[name] == (number if isinstance(number, str) else pytest.approx(number, rel=1e-5)), name
    assert ours["config"]["plan"]["map"] == "sFs" and ours["config"]["device"] == "cpu"


@WITH
def test_requests_give_what_lm_evals_own_runner_gives(folder: Path) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from zigzag.evidence.harness_model import PlannedModel

    def asked(kind: str, *arguments: Any) -> list[Any]:
        return [Instance(kind, {}, each, n) for n, each in enumerate(arguments)]

    model, tokenizer = pair()
    scored = asked("loglikelihood", ("to be ", "or not"), ("to be ", "x"), ("", "abc"), ("a longer context", " y"))
    rolled = asked("loglikelihood_rolling", ("x" * 45 + "abcdef",), ("short",))
    written = asked(
        "generate_until", ("to be", {"until": ["\n"], "max_gen_toks": 9}), ("a", {"until": [], "max_gen_toks": 9})
    )
    for plan in (None, PLAN):
        ours = PlannedModel(model, tokenizer, plan=plan, batch_size=2, max_length=20)
        found = ours.loglikelihood(scored), ours.loglikelihood_rolling(rolled), ours.generate_until(written)
        if plan is not None:
            attach(model, plan)
        theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=20)
        for (mine, greedy), (other, other_greedy) in zip(found[0], theirs.loglikelihood(scored, True), strict=True):
            assert mine == pytest.approx(other, rel=1e-5, abs=1e-5) and greedy == other_greedy
        assert found[1] == pytest.approx(theirs.loglikelihood_rolling(rolled, True), rel=1e-5)
        assert found[2] == theirs.generate_until(written, True)
        if plan is not None:
            assert ours.loglikelihood(scored) == found[0]  # the attached plan is the same
            detach(model)
    assert abs(PlannedModel(model, tokenizer).loglikelihood(scored)[3][0] - found[0][3][0]) > 1e-3  # a plan changes it


@WITH
def test_a_plan_that_keeps_all_changes_nothing(folder: Path) -> None:
    model, tokenizer = pair()
    all_full = LayerPlan(("full",) * 3, 2, 6)
    tasks = opened(folder)
    none = results_of((model, tokenizer), tasks, num_fewshot=1)
    full = results_of((model, tokenizer), opened(folder), num_fewshot=1, plan=all_full)
    some = results_of((model, tokenizer), opened(folder), num_fewshot=1, plan=PLAN)
    assert full["results"] == none["results"] != some["results"]
    assert json.loads(json.dumps(none, allow_nan=False)) == none and none["zigzag"]["thinking"] is None
    printed = harness.tables(none)
    assert all(f"own_{kind}" in printed for kind in METRICS) and "bits_per_byte" in printed


@WITH
def test_limits_and_arguments_reach_lm_eval(folder: Path) -> None:
    model, tokenizer = pair()
    tasks = opened(folder, "generate_until", gen_kwargs={"max_gen_toks": 2})
    found = results_of(
        (model, tokenizer), tasks, limit=2, num_fewshot=1, seed=7, gen_kwargs={"max_gen_toks": 2}, max_length=60
    )
    assert found["n-samples"]["own_generate_until"] == {"original": 3, "effective": 2}
    assert found["n-shot"]["own_generate_until"] == 1 and found["config"]["fewshot_seed"] == 7
    assert found["configs"]["own_generate_until"]["generation_kwargs"] == {"until": [";"], "max_gen_toks": 2}
    with pytest.raises(ArgumentError, match="do not fit into the 20 "):
        results_of((model, tokenizer), opened(folder, "generate_until"), max_length=20)
    with pytest.raises(ArgumentError, match="do not fit into the 12 "):
        results_of((model, tokenizer), opened(folder, "multiple_choice"), max_length=12)


@WITH
def test_chats(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zigzag.evidence import harness_model

    prompts: list[str] = []

    def answering(model: Any, tokenizer: Any, rows: list[list[int]], asked: Any, **options: Any) -> list[str]:
        prompts.extend(tokenizer.decode(row) for row in rows)
        assert options["thinking"] is False
        return ["0"] * len(rows)

    monkeypatch.setattr(harness_model, "answers", answering)
    model, tokenizer = pair(CHAT)
    options: dict[str, Any] = {"apply_chat_template": True, "thinking": False, "num_fewshot": 1, "limit": 1}
    tasks = opened(folder, "generate_until")
    results_of((model, tokenizer), tasks, system_instruction="Be brief.", **options)
    results_of((model, tokenizer), opened(folder, "generate_until"), fewshot_as_multiturn=False, **options)
    turns, one = prompts
    assert (
        turns.startswith("<system>Be brief.<user>") and turns.count("<user>") == 2 and turns.count("<assistant>") == 2
    )
    assert one.count("<user>") == 1 and all(prompt.endswith("<assistant><think></think>") for prompt in prompts)


@WITH
def test_a_beginning_of_the_answer_goes_on() -> None:
    from zigzag.evidence.harness_model import PlannedModel

    runs = PlannedModel(*pair(CHAT), chat=True, thinking=True)
    history = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "So"}]
    assert runs.apply_chat_template(history, add_generation_prompt=False) == "<user>hi<assistant>So"
    assert runs.apply_chat_template(history[:1]) == "<user>hi<assistant>"


@WITH
def test_a_chat_that_cannot_be_is_refused(folder: Path) -> None:
    tasks = opened(folder, "generate_until")
    with pytest.raises(ModelError, match="must have a chat template"):
        results_of(pair(), tasks, apply_chat_template=True)
    with pytest.raises(ModelError, match="does not read enable_thinking"):
        results_of(pair("{{ messages[0].content }}"), tasks, apply_chat_template=True, thinking=True)
    with pytest.raises(ModelError, match="no eos_token_id"):
        model, tokenizer = tiny_llama(vocab_size=300), tiny_tokenizer()
        results_of((model, tokenizer), opened(folder, "loglikelihood_rolling"))


@pytest.mark.parametrize("given", [{"fewshot_as_multiturn": False}, {"thinking": True}])
def test_what_is_for_chats_alone(given: dict[str, Any]) -> None:
    options = {"apply_chat_template": False, "fewshot_as_multiturn": None, "thinking": None}
    harness.check_chat(**options)
    harness.check_chat(**options | given | {"apply_chat_template": True})
    with pytest.raises(ArgumentError, match="--apply-chat-template"):
        harness.check_chat(**options | given)


@WITH
def test_tasks_are_checked_before_a_model_is_loaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval.tasks

    manager = lm_eval.tasks.TaskManager
    own = manager(include_path=str(folder), include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **options: own)  # lm-eval's own take a while to read
    with pytest.raises(ArgumentError, match="did you mean own_generate_until"):
        harness.open_tasks(["own_generate_untill"], folder)
    with pytest.raises(ArgumentError, match=r"there is no task 'zzz'.*lm-eval ls tasks"):
        harness.open_tasks(["zzz"])
    with pytest.raises(ArgumentError, match="num_beams=3"):
        opened(folder, "generate_until", gen_kwargs={"num_beams": 3})
    with pytest.raises(ArgumentError, match="at least one task"):
        harness.open_tasks([" ", ""])
    with pytest.raises(ArgumentError, match="--include-path must be a folder"):
        harness.open_tasks(["a"], tmp_path / "none")
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", manager)
    base = (folder / "generate_until.yaml").read_text()
    changes = {"gone": base.replace("data.jsonl", "gone.jsonl"), "code": base + "unsafe_code: true\n"}
    for name, text in (changes | {"seen": base + "doc_to_image: q\n"}).items():
        (tmp_path / f"{name}.yaml").write_text(text.replace("own_generate_until", name))
    for name, message in (("gone", "could not be loaded"), ("code", "runs code"), ("seen", "needs images")):
        with pytest.raises(ArgumentError, match=message):
            harness.open_tasks([name], tmp_path)


def test_without_lm_eval_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ZigzagError, match=r"pip install 'zigzag-attention\[eval\]'"):
        harness.open_tasks(["arc_easy"])
