"""When a row ends: criteria as transformers has them, stop strings, and what they are told."""

import time

import pytest
import torch
from generations import near, prompts, target
from models import VOCAB, tiny_tokenizer
from transformers import GenerationConfig
from transformers.generation.stopping_criteria import (
    ConfidenceCriteria,
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

from zigzag import ArgumentError, generate
from zigzag.generation.criteria import Criteria
from zigzag.generation.rules import PhaseRule, Rule

MODEL, TOKENIZER = target(), tiny_tokenizer()
TEXTS = prompts()[1:3]
OPTIONS = {"temperature": 0, "max_new_tokens": 10}
PLAIN = generate(MODEL, TEXTS, **OPTIONS).new_tokens


def never(ids, scores):
    return torch.tensor([False])


@pytest.mark.parametrize("kind", ["length", "eos", "string", "time", "long ago"])
def test_criteria_of_transformers(kind: str) -> None:
    """In a list of theirs, in a plain list, and alone; the row ends where theirs would, also inside a draft."""
    third, fourth = PLAIN[0][2], PLAIN[0][3]
    one, length = {
        "length": (MaxLengthCriteria(len(TEXTS[0]) + 4), 4),
        "eos": (EosTokenCriteria([third]), PLAIN[0].index(third) + 1),
        "string": (StopStringCriteria(TOKENIZER, TOKENIZER.decode([third, fourth])), 4),
        "time": (MaxTimeCriteria(9999), 10),
        "long ago": (MaxTimeCriteria(1, initial_timestamp=time.time() - 9), 1),
    }[kind]
    for given in (
        one,
        [one],
        [never, one],
        (one,),
        StoppingCriteriaList([one]),
        [[never], StoppingCriteriaList([one])],
    ):
        got = generate(MODEL, TEXTS[:1], stopping_criteria=given, **OPTIONS)
        assert got.new_tokens == [PLAIN[0][:length]]
        assert got.finish_reasons == ["length" if length == 10 else "stopped"]
    got = generate(MODEL, TEXTS[:1], stopping_criteria=one, drafter=near(MODEL), **OPTIONS)
    assert got.new_tokens == [PLAIN[0][:length]]


def test_time_of_the_configuration() -> None:
    asked = GenerationConfig(max_time=0.0)
    got = generate(MODEL, TEXTS[:1], generation_config=asked, **OPTIONS)
    assert got.finish_reasons == ["stopped"] and len(got.new_tokens[0]) == 1


def test_stop_strings_inside_a_draft() -> None:
    """The row ends at the first token after which a string is complete, wherever in a draft that is: transformers
    issue 48039 and vllm pull request 47616 tell of loops that looked at a block's last token alone."""
    for end in range(2, 7):
        string = TOKENIZER.decode(PLAIN[0][end - 2 : end])
        for drafter in (None, near(MODEL, 0.0)):  # the target itself: every draft is accepted
            got = generate(
                MODEL, TEXTS[:1], stop=string, tokenizer=TOKENIZER, drafter=drafter, logprobs=True, **OPTIONS
            )
            assert got.new_tokens == [PLAIN[0][:end]] and got.finish_reasons == ["stopped"]
            assert len(got.logprobs[0]) == end
    assert got.statistics.tokens_per_verification > 2


def test_stop_strings_of_the_configuration() -> None:
    strings = ["never", TOKENIZER.decode(PLAIN[0][1:3])]
    asked = GenerationConfig(stop_strings=strings)
    options = {"generation_config": asked, **OPTIONS}
    assert generate(MODEL, TEXTS[:1], tokenizer=TOKENIZER, **options).new_tokens == [PLAIN[0][:3]]
    assert generate(MODEL, TEXTS[:1], stop=[], **options).new_tokens == PLAIN[:1]
    with pytest.raises(ArgumentError, match="stop_strings, the model's tokenizer is needed: give tokenizer="):
        generate(MODEL, TEXTS[:1], **options)


def test_each_is_asked_once_for_each_token_of_its_row() -> None:
    """In order, about committed tokens alone; `row` is the row's place in what comes back, also when others left."""
    eos = PLAIN[0][1]
    for drafter in (None, near(MODEL), "lookup"):
        seen: list[tuple[int, list[int]]] = []

        def watch(ids, scores, row, seen=seen):
            seen.append((row, ids[0].tolist()))
            return False

        got = generate(MODEL, TEXTS, stopping_criteria=watch, eos_token_id=eos, drafter=drafter, **OPTIONS)
        assert got.finish_reasons[0] == "eos" and got.finish_reasons[1] == "length"
        for b in range(2):
            ends = range(len(TEXTS[b]) + 1, len(got.sequences[b]) + (got.finish_reasons[b] == "length"))
            assert [ids for row, ids in seen if row == b] == [got.sequences[b][:n] for n in ends]


def test_scores() -> None:
    """None as in transformers; a criterion that says so gets the log-probabilities of each new token so far."""
    given = []

    class Reads:
        reads_scores = True

        def __call__(self, ids, scores):
            given.append([float(score[0, token]) for score, token in zip(scores, ids[0, -len(scores) :], strict=True)])
            assert all(score.shape == (1, VOCAB) for score in scores)
            return False

    def blind(ids, scores):
        assert scores is None
        return False

    for drafter in (None, near(MODEL)):
        given.clear()
        options = {"max_new_tokens": 6, "temperature": 0.7, "top_k": 9, "seed": 3, "drafter": drafter}
        got = generate(MODEL, TEXTS[:1], stopping_criteria=[Reads(), blind], logprobs=True, **options)
        assert given == [pytest.approx(got.logprobs[0][: n + 1]) for n in range(6)]


def test_scores_where_a_phase_cuts_what_was_emitted() -> None:
    """What is dropped after a phase ends is decoded again; its scores are not the new token's."""
    given = []

    def reads(ids, scores):
        given.append(tuple(float(score[0, token]) for score, token in zip(scores, ids[0, -len(scores) :], strict=True)))
        return False

    reads.reads_scores = True
    rule = PhaseRule(Rule("residual"), Rule("residual"), tuple(range(0, 96, 2)), tuple(range(1, 96, 2)))
    options = {"max_new_tokens": 12, "temperature": 0.7, "drafter": near(MODEL, 0.0), "rule": rule, "logprobs": True}
    got = generate(MODEL, TEXTS[:1], stopping_criteria=reads, **options)
    assert sum(got.statistics.accepted) + got.statistics.rounds > 12  # something was dropped
    assert given == [pytest.approx(tuple(got.logprobs[0][: n + 1])) for n in range(12)]


def test_confidence() -> None:
    """transformers' own that reads scores: it stops after a token that was less likely than its threshold."""
    plain = generate(MODEL, TEXTS[:1], logprobs=True, **OPTIONS)
    least = min(plain.logprobs[0])
    first = plain.logprobs[0].index(least) + 1
    probability = float(torch.tensor(least).exp())
    for drafter in (None, near(MODEL)):
        for factor, length in ((1.001, first), (0.999, 10)):
            one = ConfidenceCriteria(assistant_confidence_threshold=probability * factor)
            got = generate(MODEL, TEXTS[:1], stopping_criteria=one, drafter=drafter, **OPTIONS)
            assert len(got.new_tokens[0]) == length


def test_answers_for_several_rows_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"must answer for one row, got \[2\] answers"):
        generate(MODEL, TEXTS, stopping_criteria=lambda ids, scores: torch.tensor([True, False]), **OPTIONS)


def test_scores_are_kept_only_for_who_reads_them() -> None:
    """They are log-probabilities over the whole vocabulary."""
    kept = Criteria([lambda ids, scores: False], (), None, None, torch.device("cpu"))
    assert kept.read_scores is False
