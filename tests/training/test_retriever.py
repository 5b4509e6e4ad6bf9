"""Rows of the tasks of `zigzag.measuring.tasks`, the shipped configuration `retriever`, and a small run of its kind."""

import pickle
import shutil
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from glms import one_thread  # noqa: E402, F401
from trainings import CONTENT, GLM, LONG, SHORT, pieces, small, tokenizer  # noqa: E402

import zigzag  # noqa: E402
from zigzag import ArgumentError  # noqa: E402
from zigzag.evidence import suites  # noqa: E402
from zigzag.measuring.corpus import read_corpus  # noqa: E402
from zigzag.measuring.prompts import Prompt, filler  # noqa: E402
from zigzag.measuring.tasks import TASKS  # noqa: E402
from zigzag.measuring.tasks.vocabulary import NOUNS  # noqa: E402
from zigzag.reference.glm.config import GlmConfig  # noqa: E402
from zigzag.training import cases, documents, evaluate  # noqa: E402
from zigzag.training import state as files  # noqa: E402
from zigzag.training import train as training  # noqa: E402
from zigzag.training.config import ASKED, KINDS, Stage, TrainingConfig, from_dict, named, read_config  # noqa: E402
from zigzag.training.data import Batches  # noqa: E402
from zigzag.training.documents import Document, Documents  # noqa: E402
from zigzag.training.model import TrainingModel, stacked_shapes  # noqa: E402
from zigzag.training.pieces import TRAINING_SEEDS, asked_texts, filler_sentences, task_texts  # noqa: E402
from zigzag.training.tokenizer import train_tokenizer  # noqa: E402
from zigzag.training.train import train  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
PAGE = " ".join((ROOT / "docs/retriever.md").read_text(encoding="utf-8").split())
LENGTH = 1500
MIX = {"passkey": 1.0, "recall": 1.0, **dict.fromkeys(ASKED, 1.0)}


def like_retriever() -> TrainingConfig:
    """Dense but for the MTP layer, and nothing of sums."""
    stages = [
        {**SHORT, "length": 450, "rows": 9, "steps": 2, "mix": MIX},
        {**LONG, "length": 800, "rows": 2, "steps": 2, "mix": MIX},
    ]
    glm = {**GLM, "first_k_dense_replace": 3, "max_position_embeddings": 1600}
    content = {name: value for name, value in CONTENT.items() if "digits" not in name and name != "operands"}
    changes = {"name": "small retriever", "mtp_depth": 1, "log_every": 1, "save_every": 2, "glm": glm, "stages": stages}
    return from_dict(content | changes)


class Recorded:
    """A task that notes how it was called and what it gave."""

    def __init__(self, task: Any, calls: list[tuple[int, dict[str, Any], Prompt]]) -> None:
        self.task, self.calls = task, calls

    def prompt(self, made_with: Any, length: int, **how: Any) -> Prompt:
        prompt = self.task.prompt(made_with, length, **how)
        self.calls.append((length, how, prompt))
        return prompt


def row_of(task: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Document, list[Any]]:
    calls: list[Any] = []
    monkeypatch.setattr(documents, "TASKS", {task: Recorded(TASKS[task], calls)})
    return Batches(pieces(), small()).row(np.random.default_rng(seed), task, LENGTH), calls


@pytest.mark.parametrize("task", ASKED)
def test_rows_of_tasks(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts as the real tokenizer gives them, one after another and each ended, of which the answers are to be said;
    seeds that evaluation never takes."""
    told, wanted = [], []
    for seed in range(4):
        row, calls = row_of(task, seed, monkeypatch)
        assert len(row.ids) == LENGTH and calls
        at = 0
        for length, how, prompt in calls:
            assert TRAINING_SEEDS[0] <= how["seed"] < TRAINING_SEEDS[1] and 0 <= how["min_distance"] <= 128
            theirs = TASKS[task].prompt(tokenizer(), length, **how)
            assert prompt == theirs and len(theirs.input_ids) == length
            assert row.ids[at : at + length].tolist() == list(theirs.input_ids)
            expected = ["prompt"] * len(theirs.prompt_ids) + [task] * len(theirs.answer_ids) + ["prompt"]
            assert [KINDS[kind] for kind in row.kinds[at : at + length + 1]] == expected
            at += length + 1
            assert row.ids[at - 1] == tokenizer().eos_token_id
            told.append((how["depth"], how["seed"], how["min_distance"], length))
        assert set(row.kinds[at:]) <= {KINDS.index("text")}
        wanted.append(len(calls))
    assert max(wanted) > 1, "short prompts are packed"
    assert LENGTH - 1 in [each[3] for each in told], "and the longest are as long as the room"
    for number in range(4):
        assert len({each[number] for each in told}) > 3


def test_rows_depend_on_seed_and_step_alone() -> None:
    stage = Stage(**{**SHORT, "length": 600, "rows": 9, "mix": MIX})
    made = Batches(pieces(), small())
    one, other = made.batch(stage, 3), pickle.loads(pickle.dumps(made)).batch(stage, 3)
    assert np.array_equal(one.ids, other.ids) and np.array_equal(one.kinds, other.kinds)
    assert {KINDS[kind] for kind in np.unique(one.kinds)} >= {"passkey", "recall", *ASKED}
    assert not np.array_equal(one.ids, made.batch(stage, 4).ids)


def test_no_room() -> None:
    for task in ASKED:
        assert Documents(pieces(), small()).makers[task](np.random.default_rng(0), 40) is None


def test_evaluation_takes_other_seeds() -> None:
    made = Documents(pieces(), small())
    asked = cases.task_cases(made, "multi_key", 480, 3, 7)
    assert [case.seed for case in asked] == [7, 8, 9] and [case.depth for case in asked] == [0, 0.5, 1]
    assert asked == TASKS["multi_key"].prompts(tokenizer(), 480, count=3, seed=7)
    last = TRAINING_SEEDS[0] - 2
    assert len(cases.task_cases(made, "copying", 480, 2, last)) == 2
    for seed in (last + 1, TRAINING_SEEDS[0], -1):
        with pytest.raises(ArgumentError, match=r"below 4294967296, where training's begin; got 2 from"):
            cases.task_cases(made, "copying", 480, 2, seed)
    assert max(evaluate.SEEDS.values()) < 10_000_000


def test_remembered_sentences_are_the_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Known or not, a text has the tokens of the tokenizer that serves; and no one is split again."""
    ours = pieces().tokenizer
    for text in (filler_sentences()[77], " The code of the tower is 1234.", "<think>", ""):
        assert (
            list(ours(text, add_special_tokens=False).input_ids)
            == tokenizer()(text, add_special_tokens=False).input_ids
        )
    ids = tokenizer()(" 12 <|endoftext|>x").input_ids
    assert ours.decode(ids) == tokenizer().decode(ids)
    monkeypatch.setattr(ours, "_backend", None)  # all of the filler is known
    assert filler(ours, Random(0), 300) == filler(tokenizer(), Random(0), 300)


def test_shipped_configuration() -> None:
    """Its weights, operations and bytes are those of the page."""
    config = read_config(named("retriever"))
    assert config.name == "retriever" and "sums" not in config.tasks and set(ASKED) < config.tasks
    assert set(config.loss_weights) == {"prompt", *config.tasks}
    assert all(abs(sum(stage.mix.values()) - 1) < 1e-9 for stage in config.stages)
    glm = {**config.glm, "vocab_size": config.vocabulary, "rope_theta": config.stages[-1].rope_theta}
    sizes = GlmConfig.from_dict({**glm, "rope_scaling": None})
    with torch.device("meta"):
        model = TrainingModel(sizes, depth=config.mtp_depth)
    count = sum(weight.numel() for weight in model.parameters())
    assert f"{count:,} weights" in PAGE and f"{model.bias.numel()} routing biases" in PAGE
    assert 20e6 < count < 40e6 and config.glm["max_position_embeddings"] == 2 * config.stages[-1].length
    matrices = sum(
        np.prod(shape) for name, shape in stacked_shapes(sizes).items() if len(shape) > 1 and "bias" not in name
    )
    applied = (sizes.num_hidden_layers + config.mtp_depth) * sizes.num_attention_heads * sizes.head_dim
    for stage in config.stages:
        plain, attention = 6 * matrices, 3.5 * 2 * stage.length * applied
        step = (plain + attention) * stage.rows * stage.length
        row = f"{stage.length:,} | {stage.rows} | {plain / 1e6:.0f} | {attention / 1e6:.0f} | {step / 1e12:.0f} |"
        assert row in PAGE, row
    assert (
        max(n for n in evaluate.LENGTHS if n <= config.glm["max_position_embeddings"]) == 2 * config.stages[-1].length
    )
    assert [n for n in evaluate.LENGTHS if n <= 8192] == [1024, 2048, 4096, 8192], "tiny-glm's evaluation is as it was"
    held = 2 * 2 * sizes.num_hidden_layers * sizes.num_key_value_heads * sizes.head_dim
    assert f"{held:,} bytes a token" in PAGE


def test_tokenizer_knows_the_words() -> None:
    """With the tasks' texts each noun is a token, without them few are."""
    with_them, without = (train_tokenizer(texts, 700) for texts in (asked_texts(), ["a b"]))
    assert all(len(with_them.tokenize(f" {noun}")) == 1 < len(without.tokenize(f" {noun}")) for noun in NOUNS)


@pytest.mark.parametrize("config", [small(), like_retriever()], ids=["without tasks", "with tasks"])
def test_tokenizer_sees_the_tasks_where_there_are_any(
    config: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tiny-glm's tokenizer stays what it was."""
    seen: list[str] = []

    def noted(texts: Any, size: int) -> Any:
        seen.extend(texts)
        return SimpleNamespace(save_pretrained=lambda folder: None)

    monkeypatch.setattr(training, "train_tokenizer", noted)
    training._new_tokenizer(config, read_corpus(config.corpus_bytes), tmp_path)
    assert (asked_texts()[0] in seen) == ("multi_key" in config.tasks)
    assert len(seen) > len(task_texts())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without a break; beside it, in `broken`, its folder as it was in the third of its four steps."""
    out = tmp_path_factory.mktemp("retriever") / "whole"

    def log(text: str) -> None:
        if "step 3 of" in text:
            shutil.copytree(out, out.with_name("broken"))

    assert train(like_retriever(), out, log=log)
    return out


def test_resumed_run_equals_the_unbroken_one(trained: Path) -> None:
    broken = trained.with_name("broken")
    assert files.load_state(broken)[1]["step"] == 2 and not (broken / files.MODEL).exists()
    assert train(like_retriever(), broken, resume=True, log=lambda text: None)
    (one, _), (other, _) = files.load_state(trained), files.load_state(broken)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    first, last = (line for line in files.read_log(trained) if line.get("step") in (1, 4) and "losses" in line)
    assert set(ASKED) <= first["losses"].keys() and last["losses"]["prompt"] < first["losses"]["prompt"] - 0.1


def test_evaluation_and_card(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what was trained; the card is this model's, not tiny-glm's."""
    monkeypatch.setattr(evaluate, "DRAFTED", 2)
    monkeypatch.setattr(evaluate, "MOST_DRAFTS", 1)
    for name in ("curves", "random_layers"):  # those do not go by what was trained
        monkeypatch.setattr(evaluate, name, lambda subject: {})
    monkeypatch.setattr(evaluate, "write_card", lambda out, found: out)
    found = evaluate.evaluate(trained, count=1, lengths=(500, 4096), log=lambda text: None)
    assert set(found["retrieval"]) == {"passkey", "recall", *ASKED, "seconds"}
    assert all(set(found["retrieval"][task]) == {"500"} for task in ASKED)
    assert "arithmetic" not in found and "copying" not in found and found["text"]["full"] > 4
    assert set(found["drafting"]) == {"text", "seconds"} and set(found["drafting"]["text"]) == {"mtp", "lookup"}
    monkeypatch.undo()
    from zigzag.training.card import write_card

    some = {name: found[name] for name in ("cases", "sink", "recent", "retrieval", "drafting")}
    card = write_card(trained, some).read_text(encoding="utf-8")
    assert card.count("# small retriever") == 1 and "zigzag.load(FOLDER)" in card and "tiny-glm" not in card
    assert "Passkeys; codes of named things; prompts of zigzag.measuring.tasks (multi_key, " in card
    assert "seeds that evaluation never takes" in card and "Beyond 800 tokens nothing" in card
    assert "| variable_tracking | 500 | " in card and "thinking" not in card


def test_evidence_takes_it(trained: Path, tmp_path: Path) -> None:
    model, made = zigzag.load_model(trained / files.MODEL)
    assert model.config.num_hidden_layers == model.config.first_k_dense_replace == 3 and made.chat_template
    assert model.config._name_or_path == files.MODEL
    measure = suites.measure_of("ruler", tasks=("multi_key",), lengths=(500,), prompts=2)
    state = suites.run("ruler", measure, [], model, made, tmp_path / "ruler.json", log=lambda text: None)
    (full,) = state["cells"].values()  # of an untrained model no plan is asked
    assert len(full["right"]) == 2
