"""What a generation says of itself: counts, reasons, and seconds, by a clock that only the test moves."""

from types import SimpleNamespace

import torch
from generations import greedy, near, prompts, target
from models import VOCAB

from zigzag import generate
from zigzag.generation import loop
from zigzag.generation.statistics import Statistics


def test_statistics() -> None:
    model = target()
    got = greedy(model, None, drafter=near(model))
    numbers = got.statistics
    assert numbers.new_tokens == sum(map(len, got.new_tokens)) == 120
    assert numbers.tokens_per_verification == 1 + numbers.accepted_per_verification
    assert numbers.rounds + sum(numbers.accepted) >= numbers.new_tokens
    assert all(a <= r <= d for a, r, d in zip(numbers.accepted, numbers.reached, numbers.drafted, strict=True))
    assert "tokens/s" in str(numbers)


class Clock:
    """Seconds that pass only where a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_seconds_are_those_of_their_part(monkeypatch) -> None:
    """Drafting takes 1, the target's forward 10, everything after it 100, each round; the prefill 10."""
    clock, model = Clock(), target()
    monkeypatch.setattr(loop, "time", clock)

    class Slow:
        law, longest = "one-hot", 2

        def draft(self, request):
            clock.now += 1
            return loop.Draft(*loop.padded([[5] * min(2, most) for most in request.most]))

        def observe(self, drafted, accepted) -> None:
            clock.now += 100

        def select(self, rows) -> None: ...

    model.register_forward_hook(lambda *_: setattr(clock, "now", clock.now + 10))
    numbers = generate(model, prompts()[:1], temperature=0, max_new_tokens=3, drafter=Slow()).statistics
    drafting = sum(numbers.drafted[:1])  # the last round has no room for a draft, and asks for none
    assert numbers.forwards in (drafting, drafting + 1) and drafting > 0
    assert numbers.seconds_prefill == 10
    assert numbers.seconds_draft == drafting
    assert numbers.seconds_verify == 10 * numbers.forwards
    assert numbers.seconds_rest == 100 * numbers.forwards
    assert numbers.draft_cost == (drafting / numbers.draft_steps) / 10
    assert SimpleNamespace(**vars(numbers)).new_tokens / numbers.tokens_per_second == (
        numbers.seconds_draft + numbers.seconds_verify + numbers.seconds_rest
    )


def test_reasons() -> None:
    """Each is told as what it is, also where two come with the same token: eos, then stopped, then length."""
    model = target()
    plain = generate(model, [[1, 2, 3]], temperature=0, max_new_tokens=8)
    new = plain.new_tokens[0]
    assert plain.finish_reasons == ["length"]
    third = new.index(new[2]) + 1

    def stop(length: int):
        return lambda ids, scores: torch.tensor([ids.shape[1] >= 3 + length])

    for drafter in (None, near(model)):
        options = {"temperature": 0, "drafter": drafter}
        for changes, reason, length in (
            ({}, "length", 8),
            ({"stopping_criteria": stop(5)}, "stopped", 5),
            ({"stopping_criteria": stop(8)}, "stopped", 8),
            ({"stopping_criteria": stop(9)}, "length", 8),
            ({"eos_token_id": new[2]}, "eos", third),
            ({"eos_token_id": new[2], "stopping_criteria": stop(third)}, "eos", third),
            ({"eos_token_id": new[2], "max_new_tokens": third}, "eos", third),
            ({"on_tokens": lambda row, tokens: True}, "cancelled", None),
        ):
            got = generate(model, [[1, 2, 3]], **{"max_new_tokens": 8, **options, **changes})
            assert got.finish_reasons == [reason]
            assert length is None or got.new_tokens == [new[:length]]
    assert len({*range(VOCAB)} - {*new}) > 0


def test_how_it_reads() -> None:
    """Before anything happened, and after a round of two drafts of which the first was accepted."""
    numbers = Statistics()
    assert str(numbers).startswith("0 tokens in 0 verifications") and "over all tested -" in str(numbers)
    numbers.count(2, 1)
    assert "over all tested 50%" in str(numbers) and "by position 100%, 0%" in str(numbers)


def test_nothing_was_drafted_or_verified() -> None:
    assert Statistics().accepted_per_verification == 0 and Statistics().tokens_per_verification == 1
    assert Statistics(forwards=3, seconds_verify=1.0, seconds_draft=1.0).draft_cost == 0
    assert Statistics(draft_steps=3, forwards=3, seconds_draft=1.0).draft_cost == 0
    assert Statistics(draft_steps=4, forwards=2, seconds_draft=1.0, seconds_verify=2.0).draft_cost == 0.25


def test_the_prompt_is_waited_for_before_its_seconds_are_read(monkeypatch) -> None:
    """Once a call, behind its last piece; a GPU has then done what the host only asked for."""
    order: list[str] = []
    fill, wait, clock = loop.Runner.fill, loop.Host.wait, loop.time.perf_counter
    monkeypatch.setattr(loop.Runner, "fill", lambda *a, **k: (order.append("fill"), fill(*a, **k))[1])
    monkeypatch.setattr(loop.Host, "wait", lambda self: (order.append("wait"), wait(self))[1])
    monkeypatch.setattr(loop.time, "perf_counter", lambda: (order.append("clock"), clock())[1])
    generate(target(), [[1, 2, 3]], max_new_tokens=3, temperature=0)
    assert order[:4] == ["clock", "fill", "wait", "clock"] and order.count("wait") == 1


def test_rounds_that_went_on_by_themselves() -> None:
    """They count, and no part of them has a time of its own."""
    numbers = Statistics(draft_steps=4, forwards=2, seconds_draft=1.0, seconds_verify=2.0)
    numbers.went_on(3, 0.5)
    assert (numbers.draft_steps, numbers.forwards, numbers.onward, numbers.seconds_rest) == (7, 3, 1, 0.5)
    assert numbers.draft_cost == 0 and Statistics().onward == 0
