"""Tokens and log-probabilities of a served plan are those of `zigzag.generate` under it, whatever vLLM does."""

from typing import Any

import pytest
from engines import Engine, expected

CLOSE = 1e-3
RUNS = [("smollm2", name) for name in ("third", "odd", "thirteen", "none")] + [("tiny-glm", "half")]


def agree(found: list[Any], run: dict[str, Any]) -> bool:
    """Equal tokens, log-probabilities within `CLOSE`."""
    tokens, logprobs = [each[0] for each in found], [each[1] for each in found]
    close = all(
        abs(a - b) < CLOSE
        for ours, theirs in zip(logprobs, run["logprobs"], strict=True)
        for a, b in zip(ours, theirs, strict=True)
    )
    return tokens == run["tokens"] and close


@pytest.mark.parametrize(("model", "name"), RUNS)
def test_as_without_an_engine(model: str, name: str) -> None:
    """Prompts of up to 1,995 tokens in chunks of 384 beside rows that decode; then again, from cached prefixes."""
    known = expected()[model]
    run = known["runs"][name]
    with Engine(known["model"], run["plan"]) as engine:
        new = len(run["tokens"][0])
        cold = engine.greedy(known["prompts"], new)
        assert agree(cold, run)
        others = [other for called, other in known["runs"].items() if called != name]
        assert not any(agree(cold, other) for other in others)  # another plan, or none, is told apart
        warm = engine.greedy(known["prompts"], new)
        assert agree(warm, run)
        assert max(each[2] for each in warm) > max(map(len, known["prompts"])) // 2  # most was cached


def test_drafts_of_ngrams() -> None:
    known = expected()["tiny-glm"]
    drafts = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3, "prompt_lookup_min": 2}
    with Engine(known["model"], known["runs"]["half"]["plan"], speculative_config=drafts) as engine:
        found = engine.greedy(known["prompts"], len(known["runs"]["half"]["tokens"][0]))
        assert agree(found, known["runs"]["half"])
