"""The shipped weights: what the record of their training says, and that they still do it."""

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")

import zigzag
from zigzag import LayerPlan
from zigzag.chat.reasoning import Content, parse
from zigzag.chat.thinking import chat_prompt
from zigzag.generation.drafting import LookupDrafter, MtpDrafter
from zigzag.measuring.prompts import passkey_prompts
from zigzag.models import tiny_glm
from zigzag.training.card import write_card
from zigzag.training.cases import sum_cases

RECORD = Path(__file__).resolve().parents[1] / "docs/tiny-glm"
FOUND = json.loads((RECORD / "evaluation.json").read_text(encoding="utf-8"))
STREAMING = LayerPlan(("streaming",) * 12, FOUND["sink"], FOUND["recent"])


@pytest.fixture(scope="module")
def loaded() -> tuple:
    model, mtp = zigzag.load("tiny-glm", dtype="float32")
    return model, mtp, zigzag.load_model("tiny-glm")[1]


def test_sizes() -> None:
    files = list(tiny_glm.folder().glob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) <= 10_000_000
    log = (RECORD / "log.jsonl").read_text(encoding="utf-8").splitlines()
    first, last = json.loads(log[0]), json.loads(log[-1])
    assert 3e6 <= first["parameters"] <= 5e6 and first["config"]["glm"]["num_hidden_layers"] >= 12
    assert last["finished"] and last["seconds"] < 540


def test_card_is_what_the_record_says(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    shutil.copy(RECORD / "log.jsonl", tmp_path)
    card = write_card(tmp_path, FOUND)
    assert card.read_text(encoding="utf-8") == (tiny_glm.folder() / "README.md").read_text(encoding="utf-8")


def test_record() -> None:
    """Retrieval, thinking and drafting as they were aimed for, on 100 held-out cases each."""
    assert FOUND["cases"] >= 100
    for task in ("passkey", "recall"):
        for length in ("1024", "2048", "4096"):
            cell = FOUND["retrieval"][task][length]
            assert cell["full"]["right"] >= 0.9 and cell["streaming"]["right"] <= 0.1
    for digits in ("3", "4", "5"):
        assert FOUND["arithmetic"][digits]["thinking"] >= FOUND["arithmetic"][digits]["direct"] + 0.2
    for text in ("thinking", "text"):
        mtp, lookup = FOUND["drafting"][text]["mtp"], FOUND["drafting"][text]["lookup"]
        for drafts in "1234":
            pairs = zip(mtp[drafts]["of_rounds"], lookup[drafts]["of_rounds"], strict=True)
            assert all(ours > theirs for ours, theirs in pairs)


def test_one_layer_carries_retrieval() -> None:
    """As docs/tiny-glm.md says of the drawn plans."""
    draws = [draw for point in FOUND["random"].values() if isinstance(point, dict) for draw in point["draws"]]
    kept = [draw["right"] for draw in draws if 5 in draw["full"]]
    assert len(draws) == 120 and 0 < len(kept) < 120
    assert sum(kept) / len(kept) > 0.96 and not any(draw["right"] for draw in draws if 5 not in draw["full"])


def test_names(loaded: tuple) -> None:
    """Plans and records name the model, not a folder of this machine; slips are told at once."""
    assert loaded[0].config._name_or_path == "tiny-glm"
    with pytest.raises(zigzag.ModelError, match="no folder tiny-gml"):
        zigzag.load("tiny-gml")


def test_it_finds_what_streaming_layers_cannot(loaded: tuple) -> None:
    model, _, tokenizer = loaded
    prompts = passkey_prompts(tokenizer, 1000, count=3, seed=2_000_000)
    ids = [prompt.prompt_ids for prompt in prompts]
    for plan, found in ((None, True), (STREAMING, False)):
        made = zigzag.generate(model, ids, plan=plan, temperature=0, max_new_tokens=5)
        for prompt, tokens in zip(prompts, made.new_tokens, strict=True):
            assert (tokenizer.decode(tokens) == prompt.key) is found


def test_it_thinks_and_drafts(loaded: tuple) -> None:
    model, mtp, tokenizer = loaded
    sums = sum_cases(4, 4, 4, 6_000_000)
    right = {}
    for thinking in (True, False):
        asked = [[{"role": "user", "content": f"What is {one.question}?"}] for one in sums]
        prompts = [chat_prompt(tokenizer, question, thinking=thinking) for question in asked]
        made = zigzag.generate(model, prompts, temperature=0, max_new_tokens=128)
        right[thinking] = 0
        for one, tokens in zip(sums, made.new_tokens, strict=True):
            events = parse(tokenizer.decode(tokens, skip_special_tokens=True), thinking=thinking)
            said = "".join(event.text for event in events if isinstance(event, Content))
            right[thinking] += said.strip() == one.answer
        if thinking:
            drafted = [
                zigzag.generate(model, prompts, drafter=drafter, temperature=0, max_new_tokens=128)
                for drafter in (MtpDrafter(mtp, stop=3), LookupDrafter(3))
            ]
            assert all(each.new_tokens == made.new_tokens for each in drafted)
            ours, theirs = (each.statistics.tokens_per_verification for each in drafted)
            assert ours > 3 > theirs
    assert right[True] >= 3 and right[False] <= 1
