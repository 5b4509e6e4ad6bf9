"""Scores at several windows: the same prompts for all, in the order asked for."""

from typing import Any

import pytest
from models import tiny_llama, tiny_tokenizer

from zigzag import ArgumentError, calibrate, make_window_plan
from zigzag.measuring.prompts import digest, passkey_prompts
from zigzag.measuring.windows import calibrate_windows


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llama(2, vocab_size=256)


def test_each_is_what_calibrate_gives_on_the_same_prompts(model: Any) -> None:
    done: list[int] = []
    prompts = passkey_prompts(tiny_tokenizer(), 400, count=2, seed=3)
    found = calibrate_windows(model, sink=2, recents=(40, 8), prompts=prompts, method="lost_mass", advance=done.append)
    assert found == [calibrate(model, sink=2, recent=n, prompts=prompts, method="lost_mass") for n in (40, 8)]
    assert found[0].values.tolist() != found[1].values.tolist() and sum(done) == 4
    plan = make_window_plan(found, kv_bytes=10_000, context=400, head_size=8)
    assert {plan.window(layer).recent for layer in plan.streaming_layers} <= {8, 40}


@pytest.mark.parametrize(("recents", "distance"), [((8, 200), 128), ((150, 300), 166)])
def test_needles_lie_behind_the_smallest_window(model: Any, recents: tuple[int, ...], distance: int) -> None:
    tokenizer = tiny_tokenizer()
    options = {"length": 600, "num_prompts": 2, "seed": 7}
    found = calibrate_windows(model, tokenizer, sink=2, recents=recents, method="lost_mass", **options)
    same = passkey_prompts(tokenizer, 600, count=2, seed=7, min_distance=distance)
    assert [each.recent for each in found] == list(recents)
    assert {each.details["digest"] for each in found} == {digest(same)}


def test_digests_tell_prompts_apart() -> None:
    tokenizer = tiny_tokenizer()
    one, other = (passkey_prompts(tokenizer, 300, count=2, seed=seed) for seed in (0, 1))
    assert digest(one) == digest(list(one)) and len(digest(one)) == 16
    moved = [type(p)(p.prompt_ids + p.answer_ids[:1], p.answer_ids[1:], p.key, p.depth, p.seed) for p in one]
    assert len({digest(each) for each in (one, other, one[::-1], one[:1], moved)}) == 5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"recents": ()}, r"recents must be different windows, at least one, got \[\]"),
        ({"recents": (8, 8)}, r"recents must be different windows, at least one, got \[8, 8\]"),
        ({"recents": (8, 16)}, "a tokenizer or prompts are needed, got neither"),
    ],
)
def test_refusals(model: Any, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=f"^calibrate_windows: {words}"):
        calibrate_windows(model, sink=2, **changes)
