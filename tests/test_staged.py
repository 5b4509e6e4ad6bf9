"""Drafters in a row: the law of a stage is its model's, rounds and stages have coins of their own, any depth."""

from collections import Counter
from itertools import product
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from generations import PLANS, near, prompts, target  # noqa: E402
from models import tiny_llama  # noqa: E402
from scipy.stats import chisquare  # noqa: E402

from zigzag import ArgumentError, LayerPlan, ModelError, generate  # noqa: E402
from zigzag.generation.distribution import Distribution  # noqa: E402
from zigzag.generation.drafting import (  # noqa: E402
    JacobiDrafter,
    LookupDrafter,
    ModelDrafter,
    RelayDrafter,
    Request,
    StagedDrafter,
    streaming_drafter,
)
from zigzag.generation.drafting.draft import Draft, padded  # noqa: E402
from zigzag.running.host import Host  # noqa: E402

ROWS, TEXT = 4000, [1, 2]


def small(seed: int) -> Any:
    """Of three tokens, in double precision: laws can be counted."""
    model = tiny_llama(2, dtype=torch.float64, vocab_size=3)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=weight.dtype) * 0.4)
    return model


def law(model: Any, tokens: int) -> dict[tuple[int, ...], float]:
    """Of so many tokens after TEXT."""
    found = {}
    with torch.inference_mode():
        for new in product(range(3), repeat=tokens):
            logits = model(torch.tensor([[*TEXT, *new]])).logits[0, len(TEXT) - 1 : -1].softmax(-1)
            found[new] = float(logits[range(tokens), list(new)].prod())
    return found


def p_value(counts: Counter, expected: dict[tuple[int, ...], float]) -> float:
    total = sum(counts.values())
    return float(chisquare([counts[key] for key in expected], [total * p for p in expected.values()]).pvalue)


def two_stages(length: int = 3) -> StagedDrafter:
    """Another model drafts, a third one for it, and what was copied for that one."""
    first = StagedDrafter(small(3), drafter=LookupDrafter(2), length=2)
    return StagedDrafter(small(2), drafter=first, length=length)


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any, Any]:
    found = small(1), small(2), small(3)
    laws = [law(model, 2) for model in found]
    assert max(abs(laws[0][key] - laws[1][key]) for key in laws[0]) > 0.05  # they draft something else
    return found


STAGED = {
    "a model": lambda: StagedDrafter(small(2), drafter=ModelDrafter(small(3), stop=2), length=3),
    "copies": lambda: StagedDrafter(small(2), drafter=LookupDrafter(2), length=3),
    "two stages": two_stages,
    "one after another": lambda: RelayDrafter((ModelDrafter(small(2), stop=2), 2), (ModelDrafter(small(3)), 1)),
    "a stage, a model, copies": lambda: RelayDrafter(
        (StagedDrafter(small(2), drafter=ModelDrafter(small(3), stop=2), length=2), 2),
        (ModelDrafter(small(2)), 1),
        (LookupDrafter(2), 2),
    ),
}


@pytest.mark.parametrize("name", ["a model", "copies", "two stages"])
def test_a_draft_has_the_law_of_its_model(name: str, models: tuple[Any, Any, Any]) -> None:
    """Three tokens a draft, of 4,000 rows: counts against the model's own law; and q is what the model says."""
    drafter = STAGED[name]()
    model = drafter.model
    drafted: Counter = Counter()
    with torch.inference_mode(), pytest.MonkeyPatch.context():
        hosts = [Host(stage.model) for stage in drafter.stages]
        for place, (stage, host) in enumerate(zip(drafter.stages, hosts, strict=True)):
            host.__enter__()
            stage.open(host, 3, place)
        to_probs = lambda logits, sequences: Distribution().probs(logits)  # noqa: E731
        draft = drafter.draft(Request([TEXT] * ROWS, [3] * ROWS, list(range(ROWS)), 5, to_probs))
        for host in hosts:
            host.__exit__(None, None, None)
    drafted.update(map(tuple, draft.rows))
    assert draft.counts.tolist() == [3] * ROWS
    expected = law(model, 3)
    assert p_value(drafted, expected) > 1e-3
    assert p_value(drafted, law(models[2], 3)) < 1e-6  # of the drafter's drafter it is not
    with torch.inference_mode():
        for row in range(0, ROWS, 400):
            text = torch.tensor([[*TEXT, *draft.rows[row]]])
            true = model(text).logits[0, len(TEXT) - 1 : -1].softmax(-1)
            torch.testing.assert_close(draft.probs[row].double(), true, atol=1e-6, rtol=1e-5)


def emitted(model: Any, drafter: Any, rule: str) -> Counter:
    made = generate(model, [TEXT] * ROWS, drafter=drafter, rule=rule, max_new_tokens=3, seed=11)
    return Counter(map(tuple, made.new_tokens))


@pytest.mark.parametrize("rule", ["residual", "block"])
@pytest.mark.parametrize("name", STAGED)
def test_emitted_tokens_have_the_law_of_the_target(name: str, rule: str, models: tuple[Any, Any, Any]) -> None:
    assert p_value(emitted(models[0], STAGED[name](), rule), law(models[0], 3)) > 1e-3


def test_coins_that_two_stages_share_are_noticed(models: tuple[Any, Any, Any]) -> None:
    """A draft was taken by the inner stage because its coin was small: the outer stage must not look at that coin."""

    class Shared(StagedDrafter):
        def open(self, host: Any, vocabulary: int | None = None, stage: int = 0) -> None:
            super().open(host, vocabulary, stage)
            self.uniforms.purpose = "verify"

    drafter = Shared(small(2), drafter=ModelDrafter(small(3), stop=3), length=3)
    assert p_value(emitted(models[0], drafter, "residual"), law(models[0], 3)) < 1e-6


def test_coins_that_turns_share_are_noticed(models: tuple[Any, Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = StagedDrafter(small(2), drafter=LookupDrafter(1), length=3)
    turn = StagedDrafter._turn

    def same(self: Any, request: Any, texts: Any, left: Any, rows: Any, round_: int) -> None:
        turn(self, request, texts, left, rows, round_ // self.length)

    monkeypatch.setattr(StagedDrafter, "_turn", same)
    assert p_value(emitted(models[0], drafter, "residual"), law(models[0], 3)) < 1e-6


def test_numbers_that_two_parts_share_are_noticed(models: tuple[Any, Any, Any]) -> None:
    """The second token is drawn with the number of the first: no longer what its row says, given the first."""

    class Shared(ModelDrafter):
        def open(self, host: Any, vocabulary: int | None = None, stage: int = 0) -> None:
            super().open(host, vocabulary, 0)

    drafter = RelayDrafter((Shared(small(2)), 1), (Shared(small(3)), 1))
    assert p_value(emitted(models[0], drafter, "residual"), law(models[0], 3)) < 1e-6
    apart = RelayDrafter((ModelDrafter(small(2)), 1), (ModelDrafter(small(3)), 1))
    assert p_value(emitted(models[0], apart, "residual"), law(models[0], 3)) > 1e-3


def test_parts_are_told_of_their_own_tokens() -> None:
    """Drafts of 2, 2 and 1 tokens, of which 3 are accepted, 2, and none; a part is asked about what was reached."""

    class Told(LookupDrafter):
        def observe(self, drafted: Any, accepted: Any) -> None:
            self.told = list(drafted), list(accepted)

    parts = Told(2), Told(3)
    relay = RelayDrafter((parts[0], 2), (parts[1], 3))
    relay._drafted = [[2, 2, 2], [2, 2, 1]]
    relay.observe([4, 4, 3], [3, 2, 0])
    assert parts[0].told == ([2, 2, 2], [2, 2, 0]) and parts[1].told == ([2, 2, 0], [1, 0, 0])


class Gives:
    """So many tokens, always the same one; told of what came of them."""

    law = "one-hot"

    def __init__(self, token: int, count: int) -> None:
        self.token, self.longest, self.told = token, count, []

    def draft(self, request: Request) -> Draft:
        return Draft(*padded([[self.token] * min(self.longest, most) for most in request.most]))

    def observe(self, drafted: Any, accepted: Any) -> None:
        self.told.append((list(drafted), list(accepted)))

    def select(self, rows: Any) -> None:
        pass


def test_a_part_goes_on_only_behind_a_whole_one() -> None:
    """One of two tokens where there was something to copy, none elsewhere: neither row goes on."""
    one = RelayDrafter((LookupDrafter(2, longest_ngram=1), 2), (Gives(3, 1), 1))
    texts = [[6, 5, 5], [4, 7, 4], [1, 2]]
    assert one.draft(Request(texts, [9, 9, 9], [0, 1, 2], 0, None)).rows == [[5], [7, 4, 3], []]


def test_a_stage_tells_and_checks_its_drafter() -> None:
    inner = Gives(1, 2)
    made = generate(small(1), [TEXT] * 20, drafter=StagedDrafter(small(2), drafter=inner, length=3), max_new_tokens=4)
    drafted = [n for told, _ in inner.told for n in told]
    accepted = [n for _, told in inner.told for n in told]
    assert made.new_tokens and set(drafted) <= {0, 1, 2} and 0 < sum(accepted) < sum(drafted)
    with pytest.raises(ArgumentError, match=r"Gives drafted token 7, outside the vocabulary \[0, 3\)"):
        generate(small(1), [TEXT], drafter=StagedDrafter(small(2), drafter=Gives(7, 2)), max_new_tokens=4)


def test_a_model_that_breaks() -> None:
    broken = small(2)
    with torch.no_grad():
        broken.lm_head.weight.fill_(torch.nan)
    with pytest.raises(ModelError, match="NaN or all -inf"):
        generate(small(1), [TEXT], drafter=StagedDrafter(broken, drafter=LookupDrafter(2)), max_new_tokens=4)


def test_a_part_that_gives_less_ends_the_row() -> None:
    """What would come behind does not follow on it. Here the first text has nothing to copy and the second one much."""
    relay = RelayDrafter((LookupDrafter(2), 2), (LookupDrafter(3), 3))
    texts = [[1, 2, 3], [5, 6, 7, 8, 9, 5, 6, 7, 8, 9, 5, 6]]
    draft = relay.draft(Request(texts, [9, 9], [0, 1], 0, None))
    assert draft.rows == [[], [7, 8, 9, 5, 6]] and draft.probs is None and relay.law == "one-hot"
    assert texts[0] == [1, 2, 3]
    assert relay.draft(Request(texts, [9, 3], [0, 1], 1, None)).rows == [[], [7, 8, 9]]
    assert relay.longest == 5 and RelayDrafter((LookupDrafter(2), 4), (LookupDrafter(3), 3)).longest == 5


@pytest.mark.parametrize("plan", PLANS)
def test_rows_of_a_batch_are_as_alone(plan: str) -> None:
    """Greedy tokens are plain decoding's, sampled ones those of each row alone, under every plan."""
    model = target()
    drafter = lambda: StagedDrafter(near(model), drafter=LookupDrafter(3), length=5)  # noqa: E731
    options: dict[str, Any] = {"plan": PLANS[plan], "max_new_tokens": 20}
    greedy = generate(model, prompts(), drafter=drafter(), temperature=0, **options)
    assert greedy.sequences == generate(model, prompts(), temperature=0, **options).sequences
    together = generate(model, prompts(), drafter=drafter(), temperature=0.9, seed=4, **options)
    for number, prompt in enumerate(prompts()):
        alone = generate(model, [prompt], drafter=drafter(), temperature=0.9, seed=4 + number, **options)
        assert alone.new_tokens[0] == together.new_tokens[number]


def test_a_hierarchy_on_one_model() -> None:
    """The target under a streaming plan drafts, a model under another plan for it (TriForce), twice the same model."""
    model = target()
    layers = model.config.num_hidden_layers
    other = near(model)
    within = ModelDrafter(other, plan=LayerPlan(("streaming",) * layers, 2, 6), stop=3)
    drafter = StagedDrafter(plan=LayerPlan(("streaming",) * layers, 4, 12), drafter=within, length=6)
    made = generate(model, prompts(), drafter=drafter, temperature=0, max_new_tokens=20)
    assert made.sequences == generate(model, prompts(), temperature=0, max_new_tokens=20).sequences
    twice = StagedDrafter(other, drafter=within, length=4)
    assert generate(model, prompts(), drafter=twice, temperature=0, max_new_tokens=20).sequences == made.sequences


class Unknown:
    law, longest = "unknown", 2


class Draws:
    law, longest = "dense", 2


def shared(model: Any) -> ModelDrafter:
    return ModelDrafter(model)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda m: StagedDrafter(m, drafter=ModelDrafter(m, parents=(-1, -1))), "ModelDrafter drafts trees"),
        (lambda m: StagedDrafter(m, drafter=JacobiDrafter(3)), "JacobiDrafter reads the target's states or guesses"),
        (lambda m: StagedDrafter(m, drafter=Unknown()), "the law of Unknown's drafts is unknown"),
        (lambda m: StagedDrafter(m, drafter=Draws()), "Draws draws, but has no `stages`"),
        (lambda m: RelayDrafter((ModelDrafter(m), 2)), "two parts or more"),
        (lambda m: RelayDrafter((ModelDrafter(m), 0), (LookupDrafter(2), 2)), "tokens of a part must be"),
        (lambda m: RelayDrafter((LookupDrafter(2), 2), (ModelDrafter(m), 2)), "must come after those that draw"),
        (lambda m: RelayDrafter((ModelDrafter(m, parents=(-1,)), 1), (LookupDrafter(2), 2)), "drafts trees"),
        (lambda m: RelayDrafter(*[(shared(m), 2)] * 2), "part of it twice"),
        (lambda m: StagedDrafter(m, drafter=LookupDrafter(2), length=0), "length must be a whole number"),
        (lambda m: StagedDrafter(drafter=LookupDrafter(2)), "a draft model is needed"),
    ],
)
def test_what_cannot_be(make: Any, told: str) -> None:
    with pytest.raises(ArgumentError, match=told):
        make(small(2))


def test_more_stages_than_there_are_numbers_for() -> None:
    model, drafter = small(2), LookupDrafter(2)
    for _ in range(16):
        drafter = StagedDrafter(model, drafter=drafter, length=2)
    with pytest.raises(ArgumentError, match="at most 16 drafters"):
        StagedDrafter(model, drafter=drafter)


def test_a_model_of_another_vocabulary_is_refused_in_any_stage() -> None:
    model = target()
    drafter = StagedDrafter(near(model), drafter=ModelDrafter(small(2)), length=2)
    with pytest.raises(ModelError, match="vocabulary of 3 tokens"):
        generate(model, prompts(), drafter=drafter, max_new_tokens=4)


def test_the_target_streams_for_itself_at_the_bottom() -> None:
    """The innermost drafter is the target without its far keys; a stage between them."""
    model = target()
    drafter = StagedDrafter(near(model), drafter=streaming_drafter(model.config.num_hidden_layers, stop=2), length=4)
    made = generate(model, prompts(), drafter=drafter, temperature=0, max_new_tokens=12)
    assert made.sequences == generate(model, prompts(), temperature=0, max_new_tokens=12).sequences
