"""What a benchmark's task asks of generation is honoured or refused by name; where an answer begins and ends."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models import tiny_llama, tiny_tokenizer
from transformers import GenerationConfig

from zigzag import ArgumentError, ModelError, generate
from zigzag.evidence import answering
from zigzag.evidence.answering import Asked, InAnswer, answers, check_lengths, said, until
from zigzag.plans.layers import LayerPlan

TOKENIZER = tiny_tokenizer()
THINKER = tiny_tokenizer()
THINKER.add_tokens(["<think>", "</think>"])
CLOSE = THINKER.convert_tokens_to_ids("</think>")


def model() -> Any:
    return tiny_llama(vocab_size=300)


def of(text: str) -> list[int]:
    return list(THINKER.encode(text))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ((), 256, 0.0, 0, 1.0, 0.0)),
        ({"until": "\n", "do_sample": False, "temperature": 0.7}, (("\n",), 256, 0.0, 0, 1.0, 0.0)),
        ({"until": ["a", "b", "a"], "max_gen_toks": 9}, (("a", "b"), 9, 0.0, 0, 1.0, 0.0)),
        ({"temperature": 0.6, "top_p": 0.9, "top_k": 5, "min_p": 0.1}, ((), 256, 0.6, 5, 0.9, 0.1)),
        ({"do_sample": True, "max_new_tokens": 7}, ((), 7, 1.0, 0, 1.0, 0.0)),
        ({"max_tokens": 3, "max_gen_toks": 3, "temperature": None}, ((), 3, 0.0, 0, 1.0, 0.0)),
        ({"num_beams": 1, "use_cache": True}, ((), 256, 0.0, 0, 1.0, 0.0)),
    ],
)
def test_what_a_task_asks(given: dict[str, Any], expected: tuple[Any, ...]) -> None:
    asked = Asked.of(given)
    found = (asked.stop, asked.max_new_tokens, asked.temperature, asked.top_k, asked.top_p, asked.min_p)
    assert found == expected


def test_the_rest_is_transformers() -> None:
    assert Asked.of({"repetition_penalty": 1.3}).config.repetition_penalty == 1.3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_beams": 4}, "num_beams=4"),
        ({"stop_at": "x"}, "stop_at='x'"),
        ({"until": ["a", ""]}, "until"),
        ({"until": 3}, "until"),
        ({"max_gen_toks": 3, "max_tokens": 4}, "several lengths"),
        ({"max_gen_toks": 0}, "max_gen_toks"),
        ({"max_length": 30}, "max_length"),
        ({"do_sample": True, "temperature": 0.0}, "do_sample=true and temperature=0"),
        ({"do_sample": "yes"}, "do_sample"),
        ({"do_sample": True, "typical_p": 0.5}, "typical_p"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 1, "top_p": 2}, "top_p"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Asked.of(given)


def test_answers_are_those_of_generate_one_by_one() -> None:
    target, plan = model(), LayerPlan(("streaming", "full", "streaming"), 2, 6)
    prompts = [of(text) for text in ("to be or not", "a", "once upon a time there was", "so it is")]
    greedy, drawn = Asked.of({"max_gen_toks": 8}), Asked.of({"max_gen_toks": 6, "temperature": 0.9, "top_k": 20})
    asked = [greedy, drawn, greedy, drawn]
    expected = []
    for place, (prompt, wanted) in enumerate(zip(prompts, asked, strict=True)):
        sampling = {"temperature": wanted.temperature, "top_k": wanted.top_k}
        result = generate(
            target,
            [prompt],
            plan=plan,
            max_new_tokens=wanted.max_new_tokens,
            seed=5 + place,
            generation_config=GenerationConfig(),
            **sampling,
        )
        expected.append(TOKENIZER.decode(result.new_tokens[0]))
    told: list[int] = []
    for batch_size in (1, 4):
        found = answers(
            target, TOKENIZER, prompts, asked, plan=plan, batch_size=batch_size, seed=5, advance=told.append
        )
        assert found == expected
    assert told == [1, 1, 1, 1, 2, 2]
    assert answers(target, TOKENIZER, prompts, asked, batch_size=4, seed=5) != expected  # the plan counts
    assert answers(target, TOKENIZER, prompts, asked, plan=plan, seed=6)[1::2] != expected[1::2]  # and so does the seed


def test_an_answer_ends_before_its_stop_string() -> None:
    target, prompt = model(), of("to be or not")
    whole = answers(target, TOKENIZER, [prompt], [Asked.of({"max_gen_toks": 12})])[0]
    stop = whole[5:7]
    place = whole.index(stop)
    assert answers(target, TOKENIZER, [prompt], [Asked.of({"max_gen_toks": 12, "until": [stop]})]) == [whole[:place]]
    assert until("a.b;c", (";", ".")) == "a" and until("abc", (";",)) == "abc"


class Scripted:
    """Writes the same tokens whatever it is asked, as far as a criterion lets it."""

    def __init__(self, tokens: list[int], reason: str = "stopped") -> None:
        self.tokens, self.reason, self.asked = tokens, reason, list[dict[str, Any]]()

    def __call__(self, model: Any, rows: list[list[int]], **options: Any) -> Any:
        self.asked.append(options)
        new: list[int] = []
        for token in self.tokens:
            new.append(token)
            ids = torch.tensor([rows[0] + new])
            if any(ends(ids, None, row=0) for ends in options["stopping_criteria"] or ()):
                break

        return SimpleNamespace(new_tokens=[new], finish_reasons=[self.reason])


def test_the_token_that_ended_it_is_no_part_of_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    for reason, expected in (("eos", "a"), ("length", "ab"), ("stopped", "ab")):
        monkeypatch.setattr(answering, "generate", Scripted(of("ab"), reason))
        assert answers(None, THINKER, [[1]], [Asked.of({})]) == [expected]


@pytest.mark.parametrize(
    ("thinking", "written", "expected"),
    [
        (True, "<think>a\nb</think>\n42\nmore", "42"),  # its own line breaks end nothing
        (True, "a\nb</think>42\nmore", "42"),  # the prompt opened it
        (True, "never\nclosed", ""),
        (True, "x</think>\n\n1</think>2\n", "12"),  # the first one closes; the decoder drops no text
        (False, "\n42\nmore", "42"),
        (None, "ab", "ab"),
    ],
)
def test_where_an_answer_begins(
    thinking: bool | None, written: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Scripted(of(written))
    monkeypatch.setattr(answering, "generate", script)
    prompt = of("</think>\nearlier\n")  # of a turn before
    found = answers(None, THINKER, [prompt], [Asked.of({"until": "\n"})], thinking=thinking)
    assert found[0].replace("</think>", "") == expected
    assert script.asked[0]["stop"] == (("\n",) if thinking is None else [])


def test_thinking_ends_as_soon_as_the_answer_does() -> None:
    ends = InAnswer(["\n"], THINKER, [2], CLOSE)
    for text, expected in (("xy\n", False), ("xy</think>", False), ("xy</think>\n4", False), ("xy</think>\n4\n", True)):
        assert ends(torch.tensor([of(text)]), None, 0) is expected, text
    assert said(THINKER, [*of("a"), CLOSE, *of(" b")], CLOSE) == "b" and said(THINKER, of(" b"), None) == "b"


def test_a_tokenizer_that_knows_no_thinking_is_refused() -> None:
    with pytest.raises(ModelError, match="must be single tokens"):
        answers(model(), TOKENIZER, [of("a")], [Asked.of({})], thinking=True)


def test_what_is_too_long_is_refused() -> None:
    asked = [Asked.of({"max_gen_toks": 4})]
    check_lengths([[1] * 6], asked, 10)
    with pytest.raises(ArgumentError, match=r"6 tokens .* 4 do not fit into the 9 "):
        check_lengths([[1] * 6], asked, 9)
    with pytest.raises(ArgumentError, match="got 1 for 2"):
        answers(None, TOKENIZER, [[1], [2]], asked)
