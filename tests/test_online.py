"""A draft model that learns while it serves: it comes nearer, what is emitted stays the target's, memory is bounded."""

from collections import Counter
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from draft_heads import random_head  # noqa: E402
from generations import PLANS, near, prompts, target  # noqa: E402
from models import tiny_llama  # noqa: E402
from test_staged import ROWS, TEXT, law, p_value, small  # noqa: E402

from zigzag import ArgumentError, generate  # noqa: E402
from zigzag.generation.drafting import OnlineDrafter  # noqa: E402
from zigzag.models.draft_heads.files import own_weights  # noqa: E402
from zigzag.running.twins import twin  # noqa: E402

QUICK: dict[str, Any] = {"every": 8, "window": 8, "rows": 4, "learning_rate": 3e-3}


@pytest.mark.parametrize("plan", PLANS)
def test_greedy_tokens_are_those_of_plain_decoding(plan: str) -> None:
    model = target()
    drafter = OnlineDrafter(near(model, 0.3), **QUICK)
    options: dict[str, Any] = {"plan": PLANS[plan], "temperature": 0, "max_new_tokens": 40}
    drafted = generate(model, prompts(), drafter=drafter, **options)
    assert drafted.sequences == generate(model, prompts(), **options).sequences
    assert drafter.steps >= 3


def test_it_comes_nearer_to_the_target() -> None:
    """On the texts that it has served; another model than the student is left alone."""
    model = target()
    student = random_head("student", model, 0.05)
    drafter = OnlineDrafter(student, every=8, window=32, rows=4, learning_rate=1e-2)
    shared = {name: weight.clone() for name, weight in model.state_dict().items()}
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": 60}
    rates = [generate(model, prompts(), drafter=drafter, **options).statistics.acceptance for _ in range(6)]
    assert rates[-1] > rates[0] + 0.2, rates
    assert all(bool((model.state_dict()[name] == weight).all()) for name, weight in shared.items())
    assert all(weight.grad is None for weight in model.parameters())


def test_sampled_tokens_have_the_law_of_the_target() -> None:
    """Of 4,000 rows, with steps in the middle."""
    model = small(1)
    drafter = OnlineDrafter(small(2), stop=2, every=2, window=2, rows=64, learning_rate=0.05)
    made = generate(model, [TEXT] * ROWS, drafter=drafter, max_new_tokens=3, seed=3)
    assert drafter.steps and p_value(Counter(map(tuple, made.new_tokens)), law(model, 3)) > 1e-3


def test_steps_are_counted_in_tokens_of_all_rows_that_go_on() -> None:
    """One for each `every` tokens, also where rows end meanwhile; a round more or less."""
    model = target()
    drafter = OnlineDrafter(near(model, 0.3), **QUICK)
    rows = [row[:8] * 2 for row in prompts() if len(row) >= 8]
    stops = [lambda ids, scores, row: len(ids[0]) >= 16 + 12 * (row + 1)]
    made = generate(model, rows, drafter=drafter, temperature=0, max_new_tokens=60, stopping_criteria=stops)
    tokens = sum(map(len, made.new_tokens))
    assert len({len(row) for row in made.new_tokens}) > 1
    assert 0.5 * tokens / 8 < drafter.steps <= tokens / 8


def test_memory_is_bounded_and_a_prompt_is_not_learned() -> None:
    model = target()
    drafter = OnlineDrafter(near(model, 0.3), **{**QUICK, "every": 1000}, most=3)
    generate(model, prompts(), drafter=drafter, temperature=0, max_new_tokens=2)
    assert not drafter.seen
    made = generate(model, prompts(), drafter=drafter, temperature=0, max_new_tokens=30)
    assert len(drafter.seen) == 3 and all(len(window) == 8 for window in drafter.seen)
    joined = [",".join(map(str, row)) for row in made.sequences]
    assert all(any(",".join(map(str, window)) in row for row in joined) for window in drafter.seen)
    assert drafter.steps == 0


def test_it_goes_on_from_a_state() -> None:
    """As if there had been no break."""
    model = target()
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": 40}
    one, other = (OnlineDrafter(near(model, 0.3), **QUICK) for _ in range(2))
    generate(model, prompts(), drafter=one, **options)
    other.load(one.state())
    other.seen, other._new = one.seen.copy(), one._new
    for drafter in (one, other):
        generate(model, prompts(), drafter=drafter, **options)
    assert all(bool((a == b).all()) for a, b in zip(one.weights, other.weights, strict=True))
    with pytest.raises(ArgumentError, match="of a drafter over another model"):
        OnlineDrafter(tiny_llama(2, dtype=torch.float64, hidden_size=16)).load(one.state())


def test_what_cannot_be() -> None:
    with pytest.raises(ArgumentError, match="window must be a whole number of at least 2, got 1"):
        OnlineDrafter(target(), window=1)
    with torch.inference_mode():
        made = tiny_llama(2)
    with pytest.raises(ArgumentError, match="no weights of its own that may change"):
        OnlineDrafter(made)


def test_a_loss_that_is_not_finite_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = target()
    drafter = OnlineDrafter(near(model, 0.3), **QUICK)
    before = [weight.clone() for weight in drafter.weights]
    loss = OnlineDrafter._loss
    monkeypatch.setattr(OnlineDrafter, "_loss", lambda self, tokens: loss(self, tokens) * torch.nan)
    generate(model, prompts(), drafter=drafter, temperature=0, max_new_tokens=40)
    assert drafter.steps == 0
    assert all(bool((a == b).all()) for a, b in zip(before, drafter.weights, strict=True))


def test_a_twin_has_the_same_weights_and_modules_of_its_own() -> None:
    model = tiny_llama(2)
    other = twin(model)
    assert all(a is b for a, b in zip(model.parameters(), other.parameters(), strict=True))
    model.model.layers[0].forward = None
    model.model.layers[1].mlp.up_proj.weight = torch.nn.Parameter(torch.zeros(48, 32))
    assert callable(other.model.layers[0].forward)
    assert other.model.layers[1].mlp.up_proj.weight is model.model.layers[1].mlp.up_proj.weight
    assert own_weights(other).keys() == own_weights(model).keys()
