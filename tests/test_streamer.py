"""Streamers of transformers: the prompt, each token, and an end whatever happens."""

from threading import Thread

import pytest
import torch
from generations import near, prompts, target
from models import tiny_tokenizer
from transformers import TextIteratorStreamer, TextStreamer

from zigzag import ArgumentError, LayerPlan, ZigzagError, generate
from zigzag.generation.drafting import ModelDrafter

MODEL, TOKENIZER, TEXT = target(), tiny_tokenizer(), prompts()[1]
OPTIONS = {"temperature": 0, "max_new_tokens": 8}


class Record:
    def __init__(self) -> None:
        self.heard: list[object] = []

    def put(self, tokens: torch.Tensor) -> None:
        self.heard.append(tokens.tolist())

    def end(self) -> None:
        self.heard.append("end")


@pytest.mark.parametrize("drafts", [False, True])
def test_what_it_hears(drafts: bool) -> None:
    """As from transformers' plain decoding: the prompt [1, T], tokens [1] in order, the end; beside on_tokens."""
    ours, others, told = Record(), Record(), []
    options = {"drafter": near(MODEL) if drafts else None, "on_tokens": lambda row, tokens: told.extend(tokens)}
    got = generate(MODEL, [TEXT], streamer=ours, **options, **OPTIONS)
    MODEL.generate(torch.tensor([TEXT]), do_sample=False, max_new_tokens=8, pad_token_id=0, streamer=others)
    assert ours.heard == others.heard == [[TEXT], *([token] for token in got.new_tokens[0]), "end"]
    assert told == got.new_tokens[0]


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    got = generate(MODEL, [TEXT], streamer=TextStreamer(TOKENIZER, skip_prompt=True), **OPTIONS)
    assert capsys.readouterr().out == TOKENIZER.decode(got.new_tokens[0]) + "\n"
    stream = TextIteratorStreamer(TOKENIZER, skip_prompt=True, timeout=60)
    generate(MODEL, [TEXT], streamer=stream, **OPTIONS)
    assert "".join(stream) == TOKENIZER.decode(got.new_tokens[0])


def broken(ids, scores):
    raise ZeroDivisionError


def cancelled(row, tokens):
    return True


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"logits_processor": broken}, ZeroDivisionError),
        ({"stopping_criteria": broken}, ZeroDivisionError),
        ({"on_tokens": broken}, ZeroDivisionError),
        ({"temperature": -1}, ArgumentError),
        ({"max_new_tokens": 0}, ArgumentError),
        ({"input_ids": "text"}, ArgumentError),
        ({"input_ids": [[1], [2]]}, ArgumentError),
        ({"num_return_sequences": 2, "temperature": 1}, ArgumentError),
        ({"on_tokens": cancelled}, None),
    ],
)
def test_the_end_comes_also_after_an_error(options: dict, error: type | None) -> None:
    """Or whoever reads from another thread waits for ever (transformers pull request 22576)."""
    stream = TextIteratorStreamer(TOKENIZER, timeout=60)
    record = Record()
    for streamer in (stream, record):
        given = {"input_ids": [TEXT], "drafter": near(MODEL), **OPTIONS, **options}
        if error is None:
            generate(MODEL, streamer=streamer, **given)
        else:
            with pytest.raises(error):
                generate(MODEL, streamer=streamer, **given)
    thread = Thread(target=list, args=(stream,), daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    assert record.heard[-1] == "end" and record.heard.count("end") == 1
    plain = generate(MODEL, [TEXT], **OPTIONS).sequences
    assert generate(MODEL, [TEXT], drafter=near(MODEL), **OPTIONS).sequences == plain  # nothing is left behind


@pytest.mark.parametrize(
    "options",
    [
        {"plan": LayerPlan(("full",), 1, 1)},
        {"cuda_graphs": True},
        {"drafter": ModelDrafter(near(MODEL), plan=LayerPlan(("full",), 1, 1))},
    ],
)
def test_of_a_call_that_is_refused_it_hears_nothing_but_the_end(options: dict) -> None:
    record = Record()
    with pytest.raises(ZigzagError):
        generate(MODEL, [TEXT], streamer=record, **options, **OPTIONS)
    assert record.heard == ["end"]


def test_one_row_alone() -> None:
    with pytest.raises(ArgumentError, match="a streamer takes one row, got 2; use on_tokens"):
        generate(MODEL, [TEXT, TEXT], streamer=Record(), **OPTIONS)
