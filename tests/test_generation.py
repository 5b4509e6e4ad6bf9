"""`zigzag.generate`: greedy equals plain greedy, sampling follows the law, rows do not touch each other."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from generations import MIXED, NAMES, PLANS, TREE, drafters, greedy, near, prompts, rules_for, target
from models import VOCAB, tiny_glm4_moe, tiny_llama
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor, StoppingCriteria, StoppingCriteriaList

import zigzag
from zigzag import ArgumentError, CacheError, generate
from zigzag.generation import verdict
from zigzag.generation.drafting import (
    Confidence,
    Draft,
    EntropyBound,
    ExpectedGain,
    Fixed,
    Heuristic,
    ModelDrafter,
)
from zigzag.generation.rules import PhaseRule, Rule
from zigzag.running.interception import attachment_of
from zigzag.running.runner import Runner


@pytest.mark.parametrize("make", [tiny_llama, tiny_glm4_moe])
def test_plain_greedy_is_transformers_greedy(make) -> None:
    model = target(make)
    ours = greedy(model, None)
    for prompt, row in zip(prompts(), ours.sequences, strict=True):
        theirs = model.generate(torch.tensor([prompt]), max_new_tokens=30, do_sample=False, pad_token_id=0)
        assert row == theirs[0].tolist()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("plan", PLANS)
def test_greedy_with_drafts_is_plain_greedy(plan: str, name: str) -> None:
    model = target()
    plain = greedy(model, PLANS[plan])
    for rule in ("greedy", *rules_for(name)):
        drafted = greedy(model, PLANS[plan], drafter=drafters(model)[name], rule=rule)
        assert drafted.sequences == plain.sequences
        assert drafted.statistics.tokens_per_verification > 1
    if name == "model":
        assert drafted.statistics.acceptance > 0.3  # the drafts are worth something, or the test says little


def test_expert_models_and_attached_plans() -> None:
    model = target(tiny_glm4_moe)
    plain = greedy(model, MIXED)
    zigzag.attach(model, MIXED)
    assert greedy(model, None, drafter=near(model)).sequences == plain.sequences
    assert attachment_of(model) is not None  # comes back
    zigzag.detach(model)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("heuristic", "expected gain")])
@pytest.mark.parametrize("plan", PLANS)
def test_rows_do_not_touch_each_other(plan: str, name: str) -> None:
    """Sampled: each row alone gives what it gives in the batch, with the same seed."""
    model = target()
    for rule in rules_for(name):
        options = {"plan": PLANS[plan], "max_new_tokens": 12, "rule": rule, "temperature": 0.8, "top_p": 0.9}
        together = generate(model, prompts(), drafter=drafters(model)[name], seed=[5, 6, 7, 8], **options)
        for b, prompt in enumerate(prompts()):
            alone = generate(model, [prompt], drafter=drafters(model)[name], seed=[5 + b], **options)
            assert alone.sequences[0] == together.sequences[b]


class Known:
    """A drafter whose drafts and law are given: draws from `row` at every step, whatever came before."""

    law, longest, parents = "dense", 2, None

    def __init__(self, row: list[float]) -> None:
        self.row = torch.tensor(row, dtype=torch.float64)

    def draft(self, request) -> Draft:
        from zigzag.generation.noise import uniforms

        rows, width = len(request.most), min(2, max(request.most))
        coins = torch.from_numpy(uniforms(request.seeds, request.round_, width, "draft"))
        probs = self.row.expand(rows, width, -1)
        ids = zigzag.ops.sample(probs.contiguous(), coins.double())
        return Draft(ids.numpy(), np.minimum(request.most, width), probs)

    def observe(self, drafted, accepted) -> None:
        pass

    def select(self, rows) -> None:
        pass


@pytest.mark.parametrize("rule", ["residual", "block", "exact"])
def test_sampled_tokens_follow_the_law(rule: str) -> None:
    """A vocabulary of 3 and two tokens to emit: counts over 4,000 rows against the model's own law, by chi-square."""
    from scipy.stats import chisquare

    model = tiny_llama(2, dtype=torch.float64, vocab_size=3)
    rows = 4000
    got = generate(model, [[1, 2]] * rows, drafter=Known([0.2, 0.3, 0.5]), rule=rule, max_new_tokens=2, seed=11)
    counts = Counter(tuple(new) for new in got.new_tokens)
    expected = {}
    with torch.inference_mode():
        first = model(torch.tensor([[1, 2]])).logits[0, -1].softmax(-1)
        for a in range(3):
            second = model(torch.tensor([[1, 2, a]])).logits[0, -1].softmax(-1)
            expected |= {(a, b): float(first[a] * second[b]) * rows for b in range(3)}
    assert chisquare([counts[k] for k in expected], list(expected.values())).pvalue > 1e-3
    wrong = [sum(expected.values()) / 9] * 9
    assert chisquare([counts[k] for k in expected], wrong).pvalue < 1e-6  # the test can fail


def test_coins_are_fresh_in_every_round() -> None:
    from zigzag.generation.noise import uniforms

    seen = [float(u) for r in range(50) for p in ("verify", "draft") for u in uniforms([3, 4], r, 9, p).ravel()]
    assert len(set(seen)) == len(seen)
    assert min(seen) >= 0 and max(seen) < 1
    assert uniforms([4], 7, 5, "verify")[0].tolist() == uniforms([3, 4], 7, 9, "verify")[1, :5].tolist()


def test_eos_ends_a_row_inside_a_draft() -> None:
    model = target()
    plain = greedy(model, None)
    eos = plain.new_tokens[0][7]
    want = [new[: new.index(eos) + 1] if eos in new else new for new in plain.new_tokens]
    for drafter in (None, near(model), "lookup"):
        got = greedy(model, None, drafter=drafter, eos_token_id=eos)
        assert got.new_tokens == want
        assert got.finish_reasons == ["eos" if eos in new else "length" for new in want]


def test_processors_and_criteria() -> None:
    class Stop(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return input_ids[:, -1] % 7 == 3

    model = target()
    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.3)])
    criteria = StoppingCriteriaList([Stop()])
    for drafter in (None, near(model), "lookup", ModelDrafter(near(model), parents=TREE)):
        got = greedy(model, None, drafter=drafter, logits_processor=processors, stopping_criteria=criteria)
        for prompt, row in zip(prompts(), got.sequences, strict=True):
            theirs = model.generate(
                torch.tensor([prompt]),
                max_new_tokens=30,
                do_sample=False,
                pad_token_id=0,
                repetition_penalty=1.3,
                stopping_criteria=criteria,
            )
            assert row == theirs[0].tolist()


def test_padding_on_either_side() -> None:
    model = target()
    want = greedy(model, None).sequences
    width = max(map(len, prompts()))
    for left in (True, False):
        ids, mask = torch.zeros(4, width, dtype=torch.long), torch.zeros(4, width, dtype=torch.long)
        for b, row in enumerate(prompts()):
            place = slice(width - len(row), width) if left else slice(0, len(row))
            ids[b, place], mask[b, place] = torch.tensor(row), 1
        got = generate(model, ids, attention_mask=mask, temperature=0, max_new_tokens=30, drafter="lookup")
        assert got.sequences == want


@pytest.mark.parametrize("plan", PLANS)
def test_the_cache_goes_on(plan: str) -> None:
    """A prompt that continues an earlier one is not computed again, and gives the same."""
    model, text = target(), prompts()[0]
    one = generate(model, [text], plan=PLANS[plan], temperature=0, max_new_tokens=10, drafter="lookup")
    longer = one.sequences[0] + [5, 6, 7]
    fed = len(longer) - len(one.cache.tokens[0])
    two = generate(model, [longer], plan=PLANS[plan], temperature=0, max_new_tokens=10, cache=one.cache)
    assert two.sequences == generate(model, [longer], plan=PLANS[plan], temperature=0, max_new_tokens=10).sequences
    assert fed < 6
    with pytest.raises(CacheError, match="one row, this model and this plan"):
        generate(target(), [longer], cache=two.cache)


def test_cancelling_leaves_a_right_cache() -> None:
    model, text = target(), prompts()[0]
    seen: list[int] = []

    def stop(row: int, tokens: list[int]) -> bool:
        seen.extend(tokens)
        return len(seen) > 5

    options = {"plan": MIXED, "temperature": 0, "drafter": near(model)}
    one = generate(model, [text], max_new_tokens=30, on_tokens=stop, **options)
    assert one.finish_reasons == ["cancelled"] and one.new_tokens[0] == seen
    assert one.cache.tokens[0] == one.sequences[0][:-1]
    rest = generate(model, one.sequences, max_new_tokens=30 - len(seen), cache=one.cache, **options)
    assert rest.sequences == generate(model, [text], max_new_tokens=30, **options).sequences


class TestPhases:
    rule = PhaseRule(Rule("top_k", {"k": VOCAB}), Rule("greedy"), begin_token_ids=(1,), end_token_ids=(2,))

    def test_state(self) -> None:
        assert self.rule.enters(False, [5, 1, 6]) and not self.rule.enters(True, [5, 2, 6])
        assert self.rule.cut(True, [5, 2, 6, 7]) == 2 and self.rule.cut(False, [5, 1, 6, 2, 7]) == 4
        assert self.rule.cut(False, [5, 2, 6]) == 3

    def test_outside_is_greedy_inside_takes_anything(self) -> None:
        model = target()
        drafter = ModelDrafter(tiny_llama(2, seed=9, dtype=torch.float64), stop=3)
        outside = [row for row in prompts() if 1 not in row]
        plain = generate(model, outside, temperature=0, max_new_tokens=20)
        got = generate(model, outside, temperature=0, max_new_tokens=20, drafter=drafter, rule=self.rule)
        assert [g for g in got.sequences if 1 not in g] == [p for p in plain.sequences if 1 not in p]
        inside = [[1, *row] for row in outside]
        thinking = generate(model, inside, temperature=0, max_new_tokens=20, drafter=drafter, rule=self.rule)
        assert thinking.statistics.acceptance > got.statistics.acceptance

    def test_after_the_end_the_outer_rule_decides(self) -> None:
        """Everything after the closing token is what plain greedy says there."""
        model = target()
        drafter = ModelDrafter(tiny_llama(2, seed=9, dtype=torch.float64), stop=3)
        rule = PhaseRule(Rule("top_k", {"k": VOCAB}), Rule("greedy"), (1,), tuple(range(2, 30)))
        got = generate(model, [[1, 40, 50]], temperature=0, max_new_tokens=25, drafter=drafter, rule=rule)
        row = got.sequences[0]
        end = next(n for n, token in enumerate(row) if n > 2 and 2 <= token < 30)
        if 1 not in row[end:]:
            again = generate(model, [row[: end + 1]], temperature=0, max_new_tokens=len(row) - end - 1)
            assert again.sequences[0] == row


@pytest.mark.parametrize("name", ["lookup", "model", "tree", "streaming"])
def test_a_drafter_is_as_new_after_an_error(name: str) -> None:
    """Whatever broke off the call, and whatever text comes next."""
    model = target()
    drafter, calls = drafters(model)[name], []

    def stumble(row, tokens):
        calls.append(row)
        if len(calls) == 3:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        generate(model, prompts()[:2], drafter=drafter, on_tokens=stumble, temperature=0, max_new_tokens=12)
    for texts in ([prompts()[0][::-1]], prompts()[1:3]):
        options = {"max_new_tokens": 6, "temperature": 0.8, "seed": 3}
        want = generate(model, texts, drafter=drafters(model)[name], **options)
        got = generate(model, texts, drafter=drafter, **options)
        assert got.sequences == want.sequences and got.statistics.accepted == want.statistics.accepted


def test_a_cache_is_as_it_was_after_an_error() -> None:
    model = target()
    first = generate(model, [[1, 2, 3]], temperature=0, max_new_tokens=3)
    longer = [*first.sequences[0], 4]

    def stumble(ids, scores):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        generate(model, [longer], max_new_tokens=3, cache=first.cache, logits_processor=stumble)
    assert first.cache.tokens == [first.sequences[0][:-1]]
    told: list[tuple[int, int]] = []
    options = {"temperature": 0, "max_new_tokens": 3, "on_prefill": lambda *both: told.append(both)}
    again = generate(model, [longer], cache=first.cache, **options)
    assert told == [(1, 1)] and again.sequences == generate(model, [longer], **options).sequences


def test_termination_arguments() -> None:
    for make in (lambda: Fixed(0), lambda: Confidence(2.0), lambda: EntropyBound(-1.0), lambda: ExpectedGain(-0.1)):
        with pytest.raises(ArgumentError):
            make()
    policy = Heuristic(3, longest=6)
    policy.observe([3], [3])
    policy.observe([5], [5])
    assert policy.length == 6
    policy.observe([6], [2])
    assert policy.length == 5
    gain = ExpectedGain(0.05)
    for _ in range(50):
        gain.observe([5], [5])
    assert gain.length > 10
    for _ in range(200):
        gain.observe([5], [0])
    assert gain.length == 1


def test_discarding_a_drawn_token_is_biased() -> None:
    """Why a policy cannot take a drawn token back: facts in numbers, p = (1/2, 1/2), q = (4/5, 1/5)."""
    p, q = (Fraction(1, 2), Fraction(1, 2)), (Fraction(4, 5), Fraction(1, 5))
    rows = {(): list(p), (0,): list(p), (1,): list(p)}
    kept = zigzag.reference.continued(zigzag.reference.law("residual", {(): list(q)}, rows), rows, 1)
    dropped = {0: q[0] * min(1, p[0] / q[0]) + q[1] * p[0], 1: q[0] * (1 - p[0] / q[0]) + q[1] * p[1]}
    assert kept == {(0,): p[0], (1,): p[1]}
    assert dropped == {0: Fraction(3, 5), 1: Fraction(2, 5)}


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("drafter", [None, "lookup"])
def test_nothing_is_sent_to_the_device_behind_a_forward(
    drafter: str | None, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would wait there until the forward ends, and the verdict would be asked for only then."""
    behind, sent, rounds = [False], [], []
    feed, fetched = Runner.feed, verdict.Pending.fetched

    def fed(self: Runner, *given, **options):
        output = feed(self, *given, **options)
        behind[0] = True
        return output

    def got(*given):
        behind[0] = False
        rounds.append(1)
        return fetched(*given)

    monkeypatch.setattr(Runner, "feed", fed)
    monkeypatch.setattr(verdict.Pending, "fetched", got)
    for name in ("from_numpy", "tensor"):
        made = getattr(torch, name)
        monkeypatch.setattr(
            torch, name, lambda *given, made=made, **options: (sent.append(behind[0]), made(*given, **options))[1]
        )
    generate(target(), prompts()[:1], drafter=drafter, temperature=temperature, max_new_tokens=12, seed=1)
    blocks = 1 if temperature else 0  # random numbers of many rounds, drawn in the first
    assert rounds and sum(sent) == blocks and len(sent) > blocks
