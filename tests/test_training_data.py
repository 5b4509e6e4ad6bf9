"""Tokenizer, documents, rows and held-out cases of zigzag.training."""

import re

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from hypothesis import given, settings
from hypothesis import strategies as st
from trainings import LONG, SHORT, pieces, small, tokenizer

from zigzag import ArgumentError, ModelError
from zigzag.chat.reasoning import Content, Reasoning, parse
from zigzag.chat.thinking import ThinkingBudget, chat_prompt
from zigzag.evidence.sums import parts_of, sum_prompt
from zigzag.measuring.answers import batches as in_batches
from zigzag.measuring.corpus import is_held_out, read_corpus
from zigzag.measuring.prompts import passkey_prompt
from zigzag.measuring.sums import Sum, draw_sum
from zigzag.training import cases
from zigzag.training.config import KINDS, TASKS, Stage
from zigzag.training.data import Batches, ahead
from zigzag.training.documents import Document, Documents
from zigzag.training.pieces import Strings, filler_sentences, make_pieces
from zigzag.training.tokenizer import read_tokenizer, stop_ids, train_tokenizer

SEEDS = st.integers(0, 2**32 - 1)
CODES = re.compile(r"The code of the (\w+ \w+) is (\d{4})\.")


def documents() -> Documents:
    return Documents(pieces(), small())


def text_of(document: Document, kind: str | None = None) -> str:
    chosen = slice(None) if kind is None else document.kinds == KINDS.index(kind)
    return tokenizer().decode(document.ids[chosen].tolist())


def ids_of(text: str) -> list[int]:
    return tokenizer()(text, add_special_tokens=False).input_ids


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    assert tokenizer().decode(ids_of(text)) == text.encode("utf-8", "replace").decode() or "<" in text


def test_tokens() -> None:
    assert len(tokenizer()) == 512
    assert tokenizer().convert_ids_to_tokens(ids_of("x 120<think>")) == ["x", "Ġ", "1", "2", "0", "<think>"]
    assert tokenizer().decode(ids_of("<think>a</think>b<|user|>"), skip_special_tokens=True) == "<think>a</think>b"
    assert tokenizer().convert_ids_to_tokens(stop_ids(tokenizer())) == ["<|endoftext|>", "<|user|>"]
    with pytest.raises(ModelError, match=r"train_tokenizer: size must be at least \d+, got 256"):
        train_tokenizer(["a"], 256)


def test_tokenizer_file(tmp_path) -> None:
    tokenizer().save_pretrained(tmp_path)
    read = read_tokenizer(tmp_path)
    assert read.get_vocab() == tokenizer().get_vocab() and read.chat_template == tokenizer().chat_template
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"a whole tokenizer.json is needed"):
        read_tokenizer(tmp_path)


def test_chat_template_is_glms() -> None:
    """The strings that GLM-4.5's own template gives (docs/reasoning.md)."""

    def shown(messages: list[dict], **options) -> str:
        return tokenizer().apply_chat_template(messages, tokenize=False, **options)

    hi, prompt = {"role": "user", "content": "hi"}, {"add_generation_prompt": True}
    past = {"role": "assistant", "content": "\n<think>so</think>\nyes"}
    begin = "[gMASK]<sop><|user|>\nhi"
    assert shown([hi], **prompt) == shown([hi], enable_thinking=True, **prompt) == begin + "<|assistant|>"
    direct = shown([hi], enable_thinking=False, **prompt)
    assert direct == begin + "/nothink<|assistant|>\n<think></think>"
    assert shown([hi, past]) == begin + "<|assistant|>\n<think>so</think>\nyes"
    assert shown([hi, past, hi]) == begin + "<|assistant|>\n<think></think>\nyes<|user|>\nhi"
    system = {"role": "system", "content": "be brief"}
    assert shown([system, hi]) == "[gMASK]<sop><|system|>\nbe brief<|user|>\nhi"


def test_budget_and_parser_work_with_the_tokenizer() -> None:
    prompt = chat_prompt(tokenizer(), [{"role": "user", "content": "hi"}], thinking=True)
    budget = ThinkingBudget.of(tokenizer(), 3)
    assert budget.is_spent([*prompt, *ids_of("\n<think>1:0")]) and not budget.is_spent(prompt)
    written = tokenizer().decode(ids_of("\n<think>1:0+1=1</think>\n12"))
    assert parse(written) == [Reasoning("1:0+1=1"), Content("12")]


@given(SEEDS, st.integers(2, 4), st.integers(1, 5))
def test_sums_are_right(seed: int, operands: int, digits: int) -> None:
    """The answer, and every line of the thinking, by a calculation of its own."""
    made = draw_sum(rng(seed), operands, digits, held_out=False)
    assert sum(map(int, made.question.split("+"))) == int(made.answer)
    columns = list(zip(*(reversed(number) for number in made.question.split("+")), strict=True))
    carry, found = 0, ""
    for number, line in enumerate(made.thinking.split("\n"), start=1):
        label, rest = line.split(":")
        total, *steps = re.split(r"\+", rest)
        assert int(label) == number and int(total) == carry
        for digit, step in zip(columns[number - 1], steps, strict=True):
            added, reached = step.split("=")
            assert added == digit and int(reached) == int(total) + int(added)
            total = reached
        carry, found = int(total) // 10, str(int(total) % 10) + found
    assert len(columns) == number and (str(carry) if carry else "") + found == made.answer.rjust(len(found), "0")


@given(SEEDS, st.booleans())
def test_sum_documents_are_the_templates(seed: int, thinking: bool) -> None:
    """Tokens as serving makes them: the chat prompt, then what the model is to write."""
    made = draw_sum(rng(seed), 3, 3, held_out=False)
    document = documents().sum_document(made, thinking)
    prompt = sum_prompt(tokenizer(), made, thinking)
    written = (f"\n<think>{made.thinking}</think>" if thinking else "") + f"\n{made.answer}<|user|>"
    assert document.ids.tolist() == [*prompt, *ids_of(written)]
    assert text_of(document, "thinking" if thinking else "direct") == written
    assert parts_of(tokenizer(), ids_of(written), thinking)[1] == made.answer
    wrong = parts_of(tokenizer(), ids_of(written.replace("</think>", "</think>1")), thinking)[1]
    assert wrong != made.answer or not thinking


def test_thinking_and_direct_equally_often() -> None:
    stage = Stage(**{**SHORT, "rows": 60, "length": 1024, "mix": {"sums": 1.0}})
    begins = {kind: ids_of(text)[0] for kind, text in (("direct", "/nothink"), ("thinking", "<think>"))}
    counts = []
    for row in Batches(pieces(), small()).batch(stage, 0).ids:
        asked = int((row == ids_of("[gMASK]")[0]).sum())
        direct = int((row == begins["direct"]).sum())
        assert asked > 8 and abs(asked - 2 * direct) <= 1
        counts.append(asked - 2 * direct)
    assert abs(sum(counts)) < 30  # the form that is one ahead is drawn row by row


@settings(max_examples=20)
@given(SEEDS, st.integers(150, 900))
def test_passkey_documents(seed: int, room: int) -> None:
    document = documents().passkey(rng(seed), room)
    text = text_of(document)
    (key,) = set(re.findall(r"\d{5}", text))
    assert len(document.ids) <= room and not is_held_out(f"key {key}")
    assert text.count(key) == 3 and text.endswith(f"What is the pass key? The pass key is {key}<|endoftext|>")
    assert text_of(document, "passkey") == key


def test_passkey_documents_are_those_of_prompts() -> None:
    """The same tokens as `zigzag.measuring.prompts` makes, but for the filler."""
    made = documents().passkey(rng(0), 200)
    key = text_of(made, "passkey")
    theirs = passkey_prompt(tokenizer(), 300, depth=0.5, seed=0)
    tail = len(ids_of(" What is the pass key? The pass key is ")) + len(theirs.answer_ids)
    ours = made.ids[-1 - tail : -1].tolist()
    assert text_of(made).startswith("There is an important piece of information")
    assert ours == [*ids_of(" What is the pass key? The pass key is "), *ids_of(key)]
    assert list(theirs.input_ids[-tail:-5]) == ours[:-5] and len(theirs.answer_ids) == 5
    assert documents().passkey(rng(0), 60) is None


@settings(max_examples=20)
@given(SEEDS, st.integers(160, 900))
def test_recall_documents(seed: int, room: int) -> None:
    """Everything that is asked was told, once, with the same code, and everything told is asked."""
    document = documents().recall(rng(seed), room)
    found = CODES.findall(text_of(document))
    told, asked = found[: len(found) // 2], found[len(found) // 2 :]
    assert len(document.ids) <= room and len(dict(told)) == len(told) >= 2
    assert sorted(told) == sorted(asked)
    assert text_of(document, "recall") == "".join(code for _, code in asked)
    assert not any(is_held_out(f"{name} {code}") for name, code in told)


@settings(max_examples=20)
@given(SEEDS, st.integers(40, 700))
def test_copy_documents(seed: int, room: int) -> None:
    document = documents().copy(rng(seed), room)
    again = document.ids[document.kinds == KINDS.index("copy")][:-1].tolist()
    before = document.ids[: -len(again) - 2].tolist()
    assert len(document.ids) <= room and before[-len(again) :] == again
    assert not is_held_out(f"copy {again}")


@settings(max_examples=20)
@given(SEEDS, st.sampled_from(TASKS), st.integers(1, 700))
def test_rows_are_as_long_as_asked(seed: int, task: str, length: int) -> None:
    row = Batches(pieces(), small()).row(rng(seed), task, length)
    assert len(row.ids) == len(row.kinds) == length
    assert row.ids.min() >= 0 and row.ids.max() < len(tokenizer()) and row.kinds.max() < len(KINDS)


def test_batches_depend_on_seed_and_step_alone() -> None:
    made, stages = Batches(pieces(), small()), [Stage(**SHORT), Stage(**LONG)]
    plan = [(stage, step) for step in range(3) for stage in stages]
    first = list(ahead(made, plan, 0))
    other_process = list(ahead(made, plan, 1))
    for (stage, _), one, other in zip(plan, first, other_process, strict=True):
        assert one.ids.shape == one.kinds.shape == (stage.rows, stage.length + 1)
        assert np.array_equal(one.ids, other.ids) and np.array_equal(one.kinds, other.kinds)
        assert other.ids.flags.writeable  # torch warns about others
    assert not np.array_equal(first[0].ids, first[2].ids)
    assert not np.array_equal(Batches(pieces(), small(seed=1)).batch(stages[0], 0).ids, first[0].ids)


def test_mix_is_kept() -> None:
    stage = Stage(**{**SHORT, "rows": 200, "mix": {"text": 1.0, "copy": 1.0, "sums": 2.0}})
    ids = Batches(pieces(), small()).batch(stage, 0).ids
    asked = sum(bool((row == ids_of("<sop>")[0]).any()) for row in ids)
    copied = sum(row[: len(copy)].tolist() == copy for copy in [ids_of("Copy this:\n")] for row in ids)
    assert abs(asked - 100) <= 1 and abs(copied - 50) <= 1


def test_held_out_cases_are_never_trained_on() -> None:
    made = Batches(pieces(), small())
    rows = [made.row(rng(seed), task, 700) for seed in range(20) for task in ("sums", "recall", "passkey")]
    text = "".join(text_of(row) for row in rows)
    trained_sums = set(re.findall(r"What is ([\d+]+)\?", text))
    trained_codes, trained_keys = set(CODES.findall(text)), set(re.findall(r"pass key is (\d{5})", text))
    assert min(map(len, (trained_sums, trained_codes, trained_keys))) > 40
    sums = {one.question for digits in (2, 3) for one in cases.sum_cases(40, 3, digits, 0)}
    keys = cases.passkey_cases(tokenizer(), 300, 12, 0)
    assert all(map(is_held_out, sums)) and not any(map(is_held_out, trained_sums))
    assert all(is_held_out(f"key {one.key}") for one in keys)
    assert not any(is_held_out(f"key {key}") for key in trained_keys)
    assert not any(is_held_out(f"{name} {code}") for name, code in trained_codes)
    assert len({one.key for one in keys}) == 12 and [one.depth for one in keys][0::11] == [0, 1]
    share = np.mean([is_held_out(str(i)) for i in range(20_000)])
    assert 1 / 18 < share < 1 / 14


def test_recall_and_copy_cases() -> None:
    made = cases.recall_cases(documents(), 500, 16, 0)
    assert len({one.key for one in made}) > 1
    for one in made:
        text = tokenizer().decode(list(one.input_ids))
        *told, (name, code) = CODES.findall(text + ".")
        assert (name, code) in told and len(told) == cases.RECORDS and code == one.key and is_held_out(f"{name} {code}")
    assert {len(one.input_ids) for one in made} == {500}
    (one,) = cases.recall_cases(documents(), 2000, 1, 0)
    text = tokenizer().decode(list(one.prompt_ids))
    *told, _ = CODES.finditer(text + f" {one.key}.")
    assert len(ids_of(text[: told[0].start()])) > 16 and len(ids_of(text[told[-1].end() :])) > 112
    copies = cases.copy_cases(documents(), 3, 0)
    for one in copies:
        assert one.prompt_ids[-cases.COPIED - 1 : -1] == one.answer_ids
        assert is_held_out(f"copy {np.array(one.answer_ids, dtype=np.int16).tolist()}")
    assert len(list(in_batches(copies, 3))) == 1


def test_corpus() -> None:
    one, other = read_corpus(60_000), read_corpus(60_000)
    assert one.fingerprint == other.fingerprint != read_corpus(90_000).fingerprint
    assert one.training and one.held_out and not set(one.training) & set(one.held_out)
    assert sum(map(len, (*one.training, *one.held_out))) <= 60_000
    rows = cases.text_rows(tokenizer(), one.held_out, 64, 3)
    assert rows.shape[1] == 64 and 0 < len(rows) <= 3
    assert tokenizer().decode(rows[0][:40].tolist()) in one.held_out[0]


def test_pieces() -> None:
    strings = Strings.of([[1, 2], [], [3]])
    assert [row.tolist() for row in (strings[i] for i in range(len(strings)))] == [[1, 2], [], [3]]
    made = make_pieces(tokenizer(), ["ab", "c"])
    end = stop_ids(tokenizer())[0]
    assert made.text.tolist() == [*ids_of("ab"), end, *ids_of("c"), end]
    assert len(made.plain) == 512 - 9 and end not in made.plain
    for i in (0, 777, len(made.sentences) - 1):
        assert made.sentences[i].tolist() == ids_of(filler_sentences()[i])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": "no"}, "seed must be a number, 0 or more, got 'no'"),
        ({"clip": float("nan")}, "clip must be a number"),
        ({"stages": []}, r"at least one \[\[stages\]\] is needed"),
        ({"stages": [{**SHORT, "mix": {"poems": 1.0}}]}, "mix of stage short: names must be of text, .* got poems"),
        ({"stages": [{**SHORT, "length": 0}]}, "length, rows, steps and share of stage short must be above 0"),
        ({"stages": [{k: v for k, v in SHORT.items() if k != "share"}]}, r"stages\[0\]: missing share; unknown -"),
        ({"speed": 1}, "the top level: missing nothing; unknown speed"),
        ({"loss_weights": {"passkeys": 1.0}}, "loss_weights: names must be of prompt"),
        ({"most_digits": 12}, "sums need 2 or more operands of 1 to 9 digits, got 3 of 1 to 12"),
        ({"log_every": 0}, "log_every, save_every and mtp_depth must be at least 1"),
    ],
)
def test_wrong_configurations(changes: dict, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        small(**changes)


def test_sum_is_its_text() -> None:
    assert Sum((19, 3)).answer == "22" and Sum((19, 3)).question == "19+3"
