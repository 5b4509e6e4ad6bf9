"""Forwards that begin before the host has read the token that they feed: the same tokens, and nothing left behind."""

import os
from typing import Any

import pytest
import torch
from generations import MIXED, PLANS, prompts, target

from zigzag import CacheError, ModelError, generate
from zigzag.generation.rules import PhaseRule, Rule
from zigzag.running.fixed import FixedStore
from zigzag.running.growing import GrowingStore
from zigzag.running.host import Host
from zigzag.running.runner import Runner

ON_GPU = torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1"
GPU = pytest.mark.skipif(not ON_GPU, reason="CUDA graphs need a GPU, and --device cuda")


def both(model: Any, ids: Any, **options: Any) -> Any:
    """The same by a growing cache, which feeds nothing ahead, beside the call: equal but for the times."""
    ahead = generate(model, ids, **options)
    plain = generate(model, ids, **{**options, "cuda_graphs": False})
    assert (ahead.sequences, ahead.finish_reasons) == (plain.sequences, plain.finish_reasons)
    assert (ahead.statistics.rounds, ahead.statistics.forwards) == (plain.statistics.rounds, plain.statistics.forwards)
    return ahead


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("plan", PLANS)
def test_the_same_tokens(plan: str, temperature: float, fixed: None) -> None:
    """Rows of several lengths, of which some end before others, at an end or where they are full."""
    model, some = target(), prompts()
    options: dict[str, Any] = {"plan": PLANS[plan], "temperature": temperature, "seed": 3, "max_new_tokens": 40}
    free = both(model, some, **options)
    ends = [free.new_tokens[0][11], free.new_tokens[1][4]]
    assert "eos" in both(model, some, **options, eos_token_id=ends).finish_reasons


def test_the_device_is_never_without_work(fixed: None, order: list[str]) -> None:
    """The next forward begins before this one's token is read; behind the last there is none."""
    generate(target(), prompts()[:1], temperature=0, max_new_tokens=4)
    assert order == ["fed", "fed", "read", "fed", "read", "fed", "read", "read"]


@pytest.mark.parametrize(
    "options",
    [
        {"logprobs": True},
        {"drafter": "lookup"},
        {"spare": 0},
        {"logits_processor": lambda ids, scores: scores},
        {"stopping_criteria": type("Reads", (), {"reads_scores": True, "__call__": lambda *_: False})()},
        {"cuda_graphs": False},
    ],
    ids=lambda options: next(iter(options)),
)
def test_where_something_reads_what_would_be_overwritten(options: Any, fixed: None, order: list[str]) -> None:
    generate(target(), prompts()[:1], temperature=0, max_new_tokens=4, **options)
    assert order == ["fed", "read"] * (len(order) // 2)


def test_rows_of_several_rules(fixed: None) -> None:
    """Their tokens are in several places, so nothing begins before they are read; where all have one rule it does."""
    model, some = target(), prompts()[:2]
    free = generate(model, some, temperature=0, max_new_tokens=12).new_tokens[0]
    rule = PhaseRule(Rule("exact"), Rule("residual"), (free[3],), (free[8],))
    both(model, some, rule=rule, temperature=0.7, max_new_tokens=20)


@pytest.mark.parametrize("plan", PLANS)
def test_a_cache_that_comes_back_goes_on(plan: str, fixed: None) -> None:
    """Also where a forward was in vain: the row ended with the token that it fed, or somebody cancelled."""
    model, some, plain = target(), prompts()[:1], {"plan": PLANS[plan], "temperature": 0}
    whole = generate(model, some, **plain, max_new_tokens=30)
    first = generate(model, some, **plain, max_new_tokens=30, eos_token_id=whole.new_tokens[0][9])
    sixth = whole.new_tokens[0][5:6]
    second = generate(model, some, **plain, max_new_tokens=30, on_tokens=lambda row, new: new == sixth)
    for result in (first, second):
        assert result.finish_reasons[0] in ("eos", "cancelled")
        assert result.cache.tokens == [result.sequences[0][:-1]]
        again = generate(
            model, result.sequences, **plain, max_new_tokens=30 - len(result.new_tokens[0]), cache=result.cache
        )
        assert again.sequences == whole.sequences


def test_an_error_of_the_users_leaves_the_cache(fixed: None) -> None:
    model, some = target(), prompts()[:1]
    result = generate(model, some, plan=MIXED, temperature=0, max_new_tokens=8)
    held = [list(row) for row in result.cache.tokens]

    def broken(row: int, new: list[int]) -> None:
        raise KeyboardInterrupt

    options: dict[str, Any] = {"plan": MIXED, "temperature": 0, "max_new_tokens": 8, "cache": result.cache}
    with pytest.raises(KeyboardInterrupt):
        generate(model, result.sequences, **options, on_tokens=broken)
    assert result.cache.tokens == held and not result.cache.fed
    again = generate(model, result.sequences, **options).new_tokens
    assert again == generate(model, result.sequences, plan=MIXED, temperature=0, max_new_tokens=8).new_tokens


def test_logits_that_are_no_numbers(fixed: None) -> None:
    """No token comes of them, and -1 is fed to nobody: on a GPU that would break the device for the whole process."""
    model, seen = target(), []
    model.get_input_embeddings().register_forward_pre_hook(lambda module, given: seen.append(int(given[0].min())))
    model.lm_head.register_forward_hook(lambda module, given, output: output.fill_(torch.nan) if seen[3:] else None)
    with pytest.raises(ModelError, match="NaN"):
        generate(model, prompts()[:1], temperature=0, max_new_tokens=12)
    assert len(seen) == 5 and min(seen) >= 0


def test_what_it_refuses() -> None:
    model = target()
    with Host(model) as host, torch.inference_mode():
        growing = Runner(host, GrowingStore(None, host.layers, host.device, spare=4))
        collecting = Runner(host, FixedStore(None, host.layers, host.device, graphs=False), keep_hidden=True)
        runner = Runner(host, FixedStore(MIXED, host.layers, host.device, graphs=False, spare=4))
        for each in (growing, collecting, runner):
            each.sync([[1, 2, 3]])
            each.feed(torch.tensor([[4, 5]]))
        assert [each.feeds_ahead for each in (growing, collecting, runner)] == [False, True, True]
        with pytest.raises(CacheError, match="fixed cache alone"):
            growing.keep([[0]], [[4]], ahead=1)
        with pytest.raises(CacheError, match="all before them stay"):
            runner.keep([[]], [[]], ahead=1)
        runner.keep([[0]], [[4]], ahead=1)
        assert runner.tokens == [[1, 2, 3, 4]] and runner.fed == 1
        with pytest.raises(CacheError, match="neither kept nor dropped"):
            runner.take_back([1])
        runner.keep([[0]], [[5]])
        assert runner.tokens == [[1, 2, 3, 4, 5]] and runner.fed == 0


@GPU
@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("plan", PLANS)
def test_graphs_ahead(plan: str, temperature: float, order: list[str]) -> None:
    """The next replay writes where the last one's logits are: these are judged before. Without spare slots none is."""
    model, options = target().float().cuda(), {"plan": PLANS[plan], "temperature": temperature, "max_new_tokens": 60}
    ahead = generate(model, prompts(), **options)
    assert order[:3] == ["fed", "fed", "read"]
    order.clear()
    alone = generate(model, prompts(), **options, spare=0)
    assert order == ["fed", "read"] * (len(order) // 2)
    assert ahead.sequences == alone.sequences
    ends = [alone.new_tokens[0][20]]
    first, second = (generate(model, prompts(), **options, spare=spare, eos_token_id=ends) for spare in (64, 0))
    assert first.sequences == second.sequences
