"""A drafter that chooses among others: the law of what comes, its drafters' states, and what it tells them."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import cycle, pairwise, product
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from generations import PLANS, near, prompts, target  # noqa: E402
from laws.coins import Coins, integrate  # noqa: E402
from laws.procedures import BINARY, row  # noqa: E402
from laws.tables import everywhere  # noqa: E402
from models import tiny_llama  # noqa: E402
from replays import replay_on_cpu  # noqa: E402
from scipy.stats import chisquare  # noqa: E402
from test_mtp import easy  # noqa: E402

from zigzag import ArgumentError, CacheError, generate  # noqa: E402
from zigzag.generation.drafting import (  # noqa: E402
    JacobiDrafter,
    LookaheadDrafter,
    LookupDrafter,
    ModelDrafter,
    MtpDrafter,
    RelayDrafter,
    Request,
    StagedDrafter,
    streaming_drafter,
)
from zigzag.generation.drafting import adaptive as module  # noqa: E402
from zigzag.generation.drafting.adaptive import AdaptiveDrafter  # noqa: E402
from zigzag.generation.drafting.bandit import NOTHING, Choice  # noqa: E402
from zigzag.generation.drafting.draft import Draft, padded  # noqa: E402
from zigzag.reference import acceptance, chain, continued, target_law, total_variation  # noqa: E402
from zigzag.reference.sampling import draw  # noqa: E402
from zigzag.reference.verification import decide  # noqa: E402

ROWS, TEXT = 4000, [1, 2]


class Ticks:
    """A clock that goes on by these seconds each time it is read."""

    def __init__(self, seconds: Sequence[float]) -> None:
        self.now, self.seconds = 0.0, cycle(seconds)

    def __call__(self) -> float:
        self.now += next(self.seconds)
        return self.now


def scripted(drafter: AdaptiveDrafter, choices: Sequence[tuple[int, int]]) -> AdaptiveDrafter:
    """It chooses these, again and again, whatever it has seen."""
    script, choose = cycle(choices), drafter.bandit.choose
    coming = [Choice(*next(script))]

    def chosen(tokens: int, *, rests: bool = False, onward: Choice | None = None) -> Choice:
        choose(tokens, rests=rests, onward=onward)
        coming.append(Choice(*next(script)))
        now = coming.pop(0)
        known = now == NOTHING or now.length in drafter.lengths[now.drafter]
        drafter.bandit._last = now if known else drafter.bandit._last
        return now

    drafter.bandit.choose = chosen  # type: ignore[method-assign]
    drafter.bandit.rests = lambda tokens: coming[0] == NOTHING  # type: ignore[method-assign]
    drafter.bandit.again = lambda choice, tokens: coming[0] == choice  # type: ignore[method-assign]
    return drafter


# --- The law, exactly: all ways that the coins of several rounds can fall, the choices made by what was accepted.

TOKENS = 5  # of the law; at most as many rounds
DRAWN, TRUE = (everywhere(table, TOKENS + 3) for table in BINARY)


class Drawn:
    """Tokens drawn from a table, with the coins of a branch."""

    law, longest, stages = "dense", 2, (object(),)

    def __init__(self, coin: Coins) -> None:
        self.coin = coin

    def draft(self, request: Request) -> Draft:
        text, done = request.sequences[0], len(request.sequences[0])
        for node in range(request.most[0]):
            text = [*text, draw(row(DRAWN, tuple(text)), self.coin(request.round_, node, "draft"))]
        ids, counts = padded([text[done:]])
        return Draft(ids, counts, probs=DRAWN)

    def observe(self, drafted: Any, accepted: Any) -> None: ...
    def select(self, rows: Any) -> None: ...


class Drops(AdaptiveDrafter):
    """Wrong: what was drawn decides whether it is drafted."""

    def draft(self, request: Request) -> Draft:
        draft = super().draft(request)
        return draft if draft.rows[0][:1] != [1] else Draft(*padded([[]]))


class Shortens(AdaptiveDrafter):
    """Wrong: drafts end before a token that the draft model found unlikely."""

    def draft(self, request: Request) -> Draft:
        draft = super().draft(request)
        return Draft(*padded([(draft.rows[0] + [1])[: (draft.rows[0] + [1]).index(1)]]))


def near_the_edge(drafter: AdaptiveDrafter) -> None:
    """It has seen rounds after which what becomes of the next draft decides the choice after it."""
    bandit = drafter.bandit
    bandit.begin(1)
    for number in range(8):
        choice = bandit.choose(5)
        bandit.gave([choice.length], [0 if number % 2 else choice.length])
        bandit.took(1 + 0.35 * choice.length)
    bandit.begin = lambda rows: None  # type: ignore[method-assign]


def emitted(kind: type[AdaptiveDrafter], seen: set[tuple[Choice, ...]]) -> Callable[[Coins], tuple[int, ...]]:
    def run(coin: Coins) -> tuple[int, ...]:
        drafter = kind((Drawn(coin), (1, 2)), clock=lambda: 0.0)
        near_the_edge(drafter)
        done: list[int] = []
        choices = []
        for number in range(TOKENS):
            if number:  # as the clock would say it
                drafter.bandit.took(1 + 0.35 * choices[-1].length)
            draft = drafter.draft(Request([done], [2], [0], number, None))
            choices.append(drafter._choice)
            ids = draft.rows[0]
            paths = [(*done, *ids[:n]) for n in range(len(ids) + 1)]
            q, p = [row(DRAWN, path) for path in paths[:-1]], [row(TRUE, path) for path in paths]
            coins = [coin(number, n, "verify") for n in range(len(ids) + 1)]
            tree = list(chain(len(ids)))
            tokens = decide(acceptance.residual(ids, q, p, tree), ids, coins, tree)[1]
            drafter.observe([len(ids)], [len(tokens) - 1])
            done = [*done, *tokens]
            if len(done) >= TOKENS:
                break
        seen.add(tuple(choices))
        return tuple(done)

    return run


def distance(kind: type[AdaptiveDrafter]) -> tuple[Fraction, set[tuple[Choice, ...]]]:
    """From the law of the target; and the choices that were made, one after another."""
    seen: set[tuple[Choice, ...]] = set()
    law = integrate(emitted(kind, seen)).law
    return total_variation(continued(law, TRUE, TOKENS), target_law(TRUE, TOKENS)), seen


def test_choices_by_what_was_accepted_leave_the_law() -> None:
    gap, seen = distance(AdaptiveDrafter)
    assert gap == 0
    assert {choices[1] for choices in seen} == {Choice(0, 1), NOTHING}  # by what came of the first draft


@pytest.mark.parametrize("wrong", [Drops, Shortens])
def test_choices_by_what_was_drawn_do_not(wrong: type[AdaptiveDrafter]) -> None:
    assert distance(wrong)[0] > Fraction(1, 100)


# --- The law, counted: through generate, drafters that draw and that do not.


def small(seed: int) -> Any:
    """Of three tokens, in double precision: laws can be counted."""
    model = tiny_llama(2, dtype=torch.float64, vocab_size=3)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=weight.dtype) * 0.4)
    return model


def p_value(drafter: AdaptiveDrafter, rule: str) -> float:
    """Of the first four tokens of 4,000 rows."""
    made = generate(small(1), [TEXT] * ROWS, drafter=drafter, rule=rule, max_new_tokens=4, seed=11)
    counts = Counter(map(tuple, made.new_tokens))
    expected = {}
    with torch.inference_mode():
        for new in product(range(3), repeat=4):
            logits = small(1)(torch.tensor([[*TEXT, *new]])).logits[0, len(TEXT) - 1 : -1].softmax(-1)
            expected[new] = float(logits[range(4), list(new)].prod()) * ROWS
    return float(chisquare([counts[key] for key in expected], list(expected.values())).pvalue)


def mixed(kind: type[AdaptiveDrafter] = AdaptiveDrafter) -> AdaptiveDrafter:
    within = StagedDrafter(small(3), drafter=ModelDrafter(small(2), stop=2), length=2)
    return kind(ModelDrafter(small(2), stop=2), LookupDrafter(2), within)


SCRIPTS = {
    "each in turn": [(0, 2), (1, 2), (2, 2), NOTHING],
    "copies first": [(1, 2), (0, 1), NOTHING, (2, 1)],
    "one that comes back": [(2, 1), (1, 1), (2, 2)],
}


@pytest.mark.parametrize("rule", ["residual", "block"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_emitted_tokens_have_the_law_of_the_target(script: str, rule: str) -> None:
    assert p_value(scripted(mixed(), SCRIPTS[script]), rule) > 1e-3


def test_rows_whose_draft_is_dropped_for_its_tokens_are_noticed() -> None:
    class DropsRows(AdaptiveDrafter):
        def draft(self, request: Request) -> Draft:
            draft = super().draft(request)
            ids = draft.token_ids
            counts = np.where((ids == 0).any(axis=1), 0, draft.counts)
            return Draft(ids, counts, draft.probs)

    assert p_value(scripted(mixed(DropsRows), SCRIPTS["each in turn"]), "residual") < 1e-6


# --- Whatever it chooses: greedy tokens are plain decoding's.


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("clock", ["steady", "anything"])
def test_greedy_tokens_do_not_depend_on_it(plan: str, clock: str) -> None:
    """Rows of several lengths, many drafters; whatever the clock says, also in a call after another."""
    model, rng = target(), random.Random(2)
    layers = model.config.num_hidden_layers
    drafter = AdaptiveDrafter(
        (LookupDrafter(6), (2, 6)),
        (ModelDrafter(near(model), stop=4), (1, 4)),
        streaming_drafter(layers, sink=2, recent=8, stop=2),
        JacobiDrafter(3),
        RelayDrafter((ModelDrafter(near(model)), 1), (LookupDrafter(2), 2)),
        clock=Ticks([1.0, 1.2, 0.9] if clock == "steady" else [rng.uniform(0.5, 1.5) for _ in range(500)]),
    )
    options: dict[str, Any] = {"plan": PLANS[plan], "temperature": 0, "max_new_tokens": 60}
    plain = generate(model, prompts(), **options).sequences
    seen: set[Choice] = set()
    for _ in range(2):
        assert generate(model, prompts(), drafter=drafter, **options).sequences == plain
        seen |= set(drafter.chosen)
    assert len(seen) > 3 and NOTHING in seen


def test_drafts_of_any_length_are_few_captured_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a drafter missed, and what it copies, has any number of tokens; to capture a shape takes as long as 40."""
    captured, widths = replay_on_cpu(monkeypatch), iter([3, 1, 7, 5, 6, 2, 4, 7] * 8)

    class Copies(LookupDrafter):
        def draft(self, request: Request) -> Draft:
            ids, counts = padded([row[: next(widths)] for row in super().draft(request).rows])
            return Draft(ids, counts)

    model = target()
    texts, options = [[5, 9, 17] * 9], {"temperature": 0, "max_new_tokens": 60}
    plain = generate(model, texts, cuda_graphs=False, **options).sequences
    script = [(0, 7)] * 5 + [NOTHING] * 2 + [(1, 3)] + [NOTHING] * 5 + [(0, 7)] * 3 + [(1, 3)]
    drafter = scripted(AdaptiveDrafter(Copies(7), ModelDrafter(near(model))), script)
    made = generate(model, texts, drafter=drafter, **options)
    assert made.sequences == plain and made.statistics.acceptance > 0.2
    shapes = {tuple(step.given[0].shape) for step in captured if len(step.given) == 4}  # no verdicts
    assert {width for _, width in shapes} == {1, 2, 4, 5, 8, 16} and len(captured) < 14


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_what_it_has_chosen_goes_on_by_itself(monkeypatch: pytest.MonkeyPatch, temperature: float) -> None:
    """Rounds of one kind behind one another; the tokens are those of rounds one by one, whoever drafts."""
    replay_on_cpu(monkeypatch)
    model, head = easy()
    small, texts = near(model), [[5, 9, 17, 3], [8, 2, 40, 41, 42], [60, 7]]
    options: dict[str, Any] = {"temperature": temperature, "seed": 3, "max_new_tokens": 90}
    script = [(0, 2)] * 9 + [NOTHING] * 3 + [(1, 3)] * 2 + [(0, 1)] * 7 + [(0, 2), NOTHING]

    def made(graphs: bool | None, *arms: Any) -> Any:
        drafter = scripted(AdaptiveDrafter(*arms), script)
        return generate(model, texts, drafter=drafter, cuda_graphs=graphs, **options)

    for arm in (MtpDrafter(head, stop=2), ModelDrafter(small, stop=2)):
        arms = (arm, (1, 2)), LookupDrafter(3)
        plain, onward = made(False, *arms), made(None, *arms)
        assert onward.sequences == plain.sequences
        assert onward.statistics.accepted == plain.statistics.accepted
        assert 10 < onward.statistics.onward < onward.statistics.forwards - 8
    two = (MtpDrafter(head, stop=2), (1, 2)), MtpDrafter(head, stop=3)  # each wants the states of all rounds
    both = made(None, *two)
    assert not both.statistics.onward and both.sequences == made(False, *two).sequences


def test_with_one_clock_sampled_tokens_are_the_same() -> None:
    model = target()

    def made(seconds: list[float]) -> Any:
        drafter = AdaptiveDrafter((LookupDrafter(6), (2, 6)), ModelDrafter(near(model)), clock=Ticks(seconds))
        return generate(model, prompts(), drafter=drafter, temperature=0.8, seed=3, max_new_tokens=50).sequences

    assert made([1.0, 1.1]) == made([1.0, 1.1])


# --- Drafters that read the target's states and guesses.


class Watched(MtpDrafter):
    """What it drafted, by the rows' texts."""

    def draft(self, request: Request) -> Draft:
        draft = super().draft(request)
        self.__dict__.setdefault("drafts", {}).update(
            {tuple(text): new for text, new in zip(request.sequences, draft.rows, strict=True)}
        )
        return draft


@pytest.mark.parametrize("count", [1, 3])
def test_a_drafter_gets_the_states_that_it_missed(count: int) -> None:
    """Its drafts are those it makes where it drafts all the time, however long others did."""
    model, head = easy()
    texts = [[5, 9, 17, 3], [8, 2, 40, 41, 42], [60, 7]][:count]
    alone, among = Watched(head, stop=2), Watched(head, stop=2)
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": 40}
    expected = generate(model, texts, drafter=alone, **options)
    # Every text is asked about, so that the two can be compared.
    reference = {tuple(key): new for key, new in alone.drafts.items()}
    script = [NOTHING, (1, 2), (0, 2), NOTHING, NOTHING, (0, 2), (0, 2), (1, 2)]
    drafter = scripted(AdaptiveDrafter(among, LookupDrafter(2)), script)
    made = generate(model, texts, drafter=drafter, **options)
    assert made.sequences == expected.sequences == generate(model, texts, **options).sequences
    both = [text for text in among.drafts if text in reference and len(among.drafts[text]) == len(reference[text])]
    assert len(both) > 3 and all(among.drafts[text] == reference[text] for text in both)
    assert made.statistics.acceptance > 0.4


def test_states_of_rounds_that_begin_early(fixed: None, order: list[str]) -> None:
    """Where a round without a draft begins before the last token is read, its states are still the drafter's."""
    model, head = easy()
    texts, options = [[5, 9, 17, 3], [8, 2, 40, 41, 42]], {"temperature": 0, "max_new_tokens": 40}
    alone, among = Watched(head, stop=2), Watched(head, stop=2)
    expected = generate(model, texts, drafter=alone, **options)
    script = [NOTHING, NOTHING, NOTHING, (0, 2), NOTHING, NOTHING, (0, 2), (0, 2)]
    order.clear()
    made = generate(model, texts, drafter=scripted(AdaptiveDrafter(among), script), **options)
    assert made.sequences == expected.sequences
    assert order[:6] == ["fed", "fed", "read", "fed", "read", "read"]
    both = [text for text in among.drafts if len(among.drafts[text]) == len(alone.drafts.get(text, []))]
    assert len(both) > 3 and all(among.drafts[text] == alone.drafts[text] for text in both)


def test_rounds_that_begin_early_measure_the_same_choices(fixed: None, order: list[str]) -> None:
    """The real bandit: it rests where drafts do not pay, round after round, and never feeds one that is to draft."""
    model, texts = target(), prompts()
    drafter = AdaptiveDrafter((LookupDrafter(6), (2, 6)), clock=Ticks([1.0, 1.1]))
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": 60}
    plain = generate(model, texts, cuda_graphs=False, **options).sequences
    order.clear()
    assert generate(model, texts, drafter=drafter, **options).sequences == plain
    early = sum(pair == ("fed", "fed") for pair in pairwise(order))
    assert early and drafter.chosen[NOTHING] > early and len(drafter.chosen) > 1


def test_a_drafter_that_missed_too_much_is_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its states are given up for this call, and only for this one."""
    monkeypatch.setattr(module, "MOST_MISSED", 5)
    model, head = easy()
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": 40}
    plain = generate(model, [[5, 9, 17]], **options).sequences
    drafter = AdaptiveDrafter(MtpDrafter(head, stop=2), clock=Ticks([1.0]))
    choose, drafter.bandit.choose = drafter.bandit.choose, lambda tokens, **_: NOTHING  # type: ignore[method-assign]
    assert generate(model, [[5, 9, 17]], drafter=drafter, **options).sequences == plain
    assert drafter.bandit.records[0].out and not drafter._missed
    drafter.bandit.choose = choose  # type: ignore[method-assign]
    monkeypatch.setattr(module, "MOST_MISSED", 50)
    assert generate(model, [[5, 9, 17]], drafter=drafter, **options).sequences == plain
    assert drafter.chosen[Choice(0, 2)] > 3


def test_states_need_a_cache_from_the_start() -> None:
    model, head = easy()
    cache = generate(model, [[5, 9, 17]], max_new_tokens=3).cache
    with pytest.raises(CacheError, match="reads the target's states"):
        generate(model, [[5, 9, 17]], drafter=AdaptiveDrafter(MtpDrafter(head)), cache=cache, max_new_tokens=3)


class Told(LookupDrafter):
    def __init__(self, stop: int) -> None:
        super().__init__(stop)
        self.heard: list[tuple[list[int], list[int]]] = []

    def observe(self, drafted: Any, accepted: Any) -> None:
        self.heard.append((list(drafted), list(accepted)))


def test_who_is_told() -> None:
    """The drafter whose draft it was; a Jacobi drafter always, whose guesses stand behind any draft."""
    one, two, jacobi = Told(2), Told(3), JacobiDrafter(2)
    drafter = scripted(AdaptiveDrafter(one, two, jacobi), [(0, 2), (1, 3), NOTHING, (2, 2)])
    texts = [[4, 5, 6, 4, 5], [7, 7, 7, 7, 7]]

    def round_(number: int, predictions: Any = None) -> list[list[int]]:
        return drafter.draft(Request(texts, [9, 1], [0, 1], number, None, None, predictions)).rows

    assert round_(0) == [[6, 4], [7]]
    drafter.observe([2, 1], [2, 0])
    assert round_(1)[1] == [7]
    drafter.observe([3, 1], [1, 1])
    assert round_(2) == [[], []]
    drafter.observe([0, 0], [0, 0])
    drafter.observe([0, 0], [0, 0])  # a round without a request
    assert one.heard == [([2, 1], [2, 0])] and two.heard == [([3, 1], [1, 1])]
    assert round_(3, [[1, 8, 9], [2, 3]]) == [[8, 9], [3]]
    drafter.observe([2, 1], [1, 0])
    assert jacobi._accepted == [1, 0]
    drafter.select([1])
    assert jacobi._accepted == [0] and len(one._rows) == 1


def test_rows_that_leave_before_a_drafter_has_drafted() -> None:
    one, two = LookupDrafter(2), LookupDrafter(2)
    drafter = scripted(AdaptiveDrafter(one, two), [(0, 2), (1, 2)])
    drafter.draft(Request([[1, 1, 1], [2, 2, 2]], [9, 9], [0, 1], 0, None))
    drafter.observe([2, 2], [0, 0])
    drafter.select([1])
    assert drafter.draft(Request([[2, 2, 2, 5, 2]], [9], [1], 1, None)).rows == [[5, 2]]


# --- What it says of itself, and what it refuses.


def test_what_it_says_of_itself() -> None:
    model = small(2)
    first, second = ModelDrafter(model, stop=4), StagedDrafter(model, drafter=LookupDrafter(2), length=3)
    copies = LookupDrafter(9)
    drafter = AdaptiveDrafter((copies, (2, 7)), (first, [6, 1]), second)
    assert drafter.law == "dense" and drafter.longest == 7 and drafter.lengths == [(2, 7), (1, 6), (3,)]
    assert drafter.stages == (first, second, drafter) and not drafter.wants_hidden and not drafter.wants_predictions
    assert AdaptiveDrafter(first, second).stages == (first, second)
    alone = AdaptiveDrafter(copies, JacobiDrafter(2))
    assert alone.law == "one-hot" and alone.stages == () and alone.longest == 9 and alone.wants_predictions


def test_it_must_be_opened_where_laws_are_mixed() -> None:
    drafter = scripted(AdaptiveDrafter(LookupDrafter(2), ModelDrafter(small(2))), [(0, 2)])
    with pytest.raises(CacheError, match="must open it"):
        drafter.draft(Request([[1, 1, 1]], [5], [0], 0, None))
    with pytest.raises(ArgumentError, match="the size of the vocabulary"):
        drafter.open(None)  # type: ignore[arg-type]


class Unknown:
    law, longest = "unknown", 2


class Draws:
    law, longest = "dense", 2


COPIES = LookupDrafter(2)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: AdaptiveDrafter(), "at least one drafter"),
        (lambda: AdaptiveDrafter(COPIES, loss=1.5), r"loss must be in \[0, 1\]"),
        (lambda: AdaptiveDrafter((COPIES, ())), "at least one length"),
        (lambda: AdaptiveDrafter((COPIES, (0, 3))), "length must be"),
        (lambda: AdaptiveDrafter(COPIES, (COPIES, (1,))), "part of it twice"),
        (lambda: AdaptiveDrafter(LookaheadDrafter()), "LookaheadDrafter drafts trees"),
        (lambda: AdaptiveDrafter(Unknown()), "the law of Unknown's drafts is unknown"),
        (lambda: AdaptiveDrafter(Draws()), "Draws draws, but has no `stages`"),
    ],
)
def test_what_cannot_be(make: Any, told: str) -> None:
    with pytest.raises(ArgumentError, match=told):
        make()
