"""Log-probabilities of the new tokens: the target's, by a plain forward over the text, whatever was drafted."""

import pytest
import torch
from generations import NAMES, drafters, near, prompts, rules_for, target
from transformers import GenerationConfig, LogitsProcessorList, RepetitionPenaltyLogitsProcessor

from zigzag import generate, ops
from zigzag.generation.rules import Rule

MODEL, TEXTS = target(), prompts()[1:]


def forward(rows: list[list[int]], starts: list[int], turn) -> list[list[float]]:
    """Of each row's tokens from its start on: the logarithm that `turn(logits, text)` gives them."""
    found = []
    for row, start in zip(rows, starts, strict=True):
        with torch.inference_mode():
            logits = MODEL(torch.tensor([row])).logits[0]
        found.append([float(turn(logits[n - 1], row[:n])[row[n]]) for n in range(start, len(row))])
    return found


def agree(got, turn) -> bool:
    want = forward(got.sequences, [len(text) for text in TEXTS], turn)
    return all(mine == pytest.approx(row, abs=1e-5) for mine, row in zip(got.logprobs, want, strict=True))


@pytest.mark.parametrize("name", [None, *NAMES])
def test_of_a_plain_forward(name: str | None) -> None:
    """Drawn with cuts, under every drafter; each row by itself, and rows leave at different times."""
    cuts = {"temperature": 0.7, "top_k": 12, "top_p": 0.9}
    drafter = None if name is None else drafters(MODEL)[name]
    rule = "residual" if name is None else rules_for(name)[-1]
    got = generate(
        MODEL, TEXTS, drafter=drafter, rule=rule, logprobs=True, max_new_tokens=8, eos_token_id=[*range(9)], **cuts
    )
    assert [len(row) for row in got.logprobs] == [len(new) for new in got.new_tokens]
    assert agree(got, lambda logits, text: ops.to_probs(logits[None].float(), **cuts)[0].log())
    assert not agree(got, lambda logits, text: logits.log_softmax(-1))  # the check can fail: these are the raw ones


def test_greedy() -> None:
    """Of the processed logits themselves, as compute_transition_scores has them; 0 would say nothing."""
    penalty = [RepetitionPenaltyLogitsProcessor(1.4)]
    for drafter in (None, near(MODEL), "lookup"):
        got = generate(
            MODEL, TEXTS[:1], drafter=drafter, temperature=0, max_new_tokens=8, logprobs=True, logits_processor=penalty
        )
        ids = torch.tensor(TEXTS[:1])
        options = {"return_dict_in_generate": True, "output_scores": True, "do_sample": False, "pad_token_id": 0}
        made = MODEL.generate(ids, max_new_tokens=8, logits_processor=LogitsProcessorList(penalty), **options)
        want = MODEL.compute_transition_scores(made.sequences, made.scores, normalize_logits=True)[0]
        assert got.sequences[0] == made.sequences[0].tolist()
        assert got.logprobs[0] == pytest.approx(want.tolist(), abs=1e-5)
        assert max(got.logprobs[0]) < 0
        options = {"temperature": 0, "max_new_tokens": 8, "logprobs": True, "logits_processor": penalty}
        cut = generate(MODEL, TEXTS[:1], drafter=drafter, top_k=1, **options)
        assert cut.logprobs == got.logprobs  # nothing is cut off at temperature 0


def test_a_lossy_rule_says_what_the_target_thinks() -> None:
    options = {"drafter": near(MODEL, 1.0), "rule": Rule("top_k", {"k": 96}), "max_new_tokens": 6, "temperature": 1.0}
    got = generate(MODEL, TEXTS, logprobs=True, **options)
    assert agree(got, lambda logits, text: logits.log_softmax(-1))
    cut = generate(MODEL, TEXTS, logprobs=True, top_k=1, **options)
    assert {value for row in cut.logprobs for value in row} == {0.0, -float("inf")}


def test_only_where_they_are_asked_for() -> None:
    assert generate(MODEL, TEXTS[:1], max_new_tokens=2).logprobs is None
    asked = GenerationConfig(renormalize_logits=True)  # the same probabilities
    one = generate(MODEL, TEXTS, max_new_tokens=4, logprobs=True, generation_config=asked)
    assert one.logprobs == generate(MODEL, TEXTS, max_new_tokens=4, logprobs=True).logprobs


def test_a_tiny_temperature() -> None:
    got = generate(MODEL, TEXTS[:1], max_new_tokens=3, temperature=1e-30, logprobs=True)
    assert got.logprobs == [[0.0, 0.0, 0.0]]
