"""Contrastive decoding: the formula, whatever the cache held before; its law under every drafter; what it keeps."""

from collections import Counter
from functools import cache
from itertools import product
from threading import Thread
from time import sleep
from typing import Any

import numpy as np
import pytest
import torch
from generations import MIXED, TREE, near, prompts, target
from models import VOCAB, tiny_llama
from scipy.stats import chisquare
from transformers.cache_utils import DynamicCache
from windowed_models import WINDOWED, qwen3_next

import zigzag
from zigzag import ArgumentError, ModelError, generate
from zigzag.generation import contrastive as module
from zigzag.generation.contrastive import Contrastive
from zigzag.generation.drafting import LookupDrafter, ModelDrafter, RelayDrafter, StagedDrafter

SIZE, TEXT, ROWS = 11, [1, 2, 3], 400
CHOICES = [(0.5, 0.1), (0.0, 0.1), (2.0, 0.01), (0.7, 1.0), (1.0, 1e-9)]


def model(seed: int, *, scale: float = 0.5, layers: int = 2, size: int = SIZE, **changes: Any) -> Any:
    """A random Llama of 11 tokens."""
    made = tiny_llama(layers, dtype=torch.float64, vocab_size=size, **changes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=weight.dtype) * scale)
    return made


TARGET, SMALL = model(1), model(2, scale=0.35)


def logits_of(one: Any, text: list[int]) -> np.ndarray:
    """[V] after the text, computed whole."""
    with torch.inference_mode():
        return one(torch.tensor([text])).logits[0, -1].double().numpy()


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def formula(expert: np.ndarray, amateur: np.ndarray, strength: float, plausible: float) -> np.ndarray:
    """As arXiv 2309.09117 has it, of log-probabilities."""
    log_p, log_a = log_softmax(expert), log_softmax(amateur)
    with np.errstate(invalid="ignore"):
        contrast = (1 + strength) * log_p - strength * log_a
    return np.where(np.exp(log_p) >= plausible * np.exp(log_p).max(), contrast, -np.inf)


def asked(one: Contrastive, text: list[int], scores: np.ndarray, row: int = 0) -> np.ndarray:
    return one(torch.tensor([text]), torch.from_numpy(scores)[None], row=row)[0].double().numpy()


def random_texts(seed: int, count: int, size: int = SIZE) -> list[list[int]]:
    """Each the one before without some of its last tokens, and with others; now and then quite another."""
    rng, text = np.random.default_rng(seed), [1]
    made = []
    for _ in range(count):
        kept = int(rng.integers(0, 5)) if rng.random() < 0.9 else len(text)
        text = [*text[: max(1, len(text) - kept)], *rng.integers(0, size, rng.integers(0, 6)).tolist()]
        made.append(text)
    return made


@pytest.mark.parametrize(("strength", "plausible"), CHOICES)
def test_scores_are_the_formula(strength: float, plausible: float) -> None:
    one = Contrastive(SMALL, strength=strength, plausible=plausible)
    for text in random_texts(0, 20):
        expert = logits_of(TARGET, text)
        expected = formula(expert, logits_of(SMALL, text), strength, plausible)
        np.testing.assert_allclose(asked(one, text, expert), expected, rtol=1e-9, atol=1e-9)
        raised = formula(expert, logits_of(SMALL, text) + 3.0, strength, plausible)
        np.testing.assert_allclose(expected, raised)  # logits that are all raised are the same probabilities
    assert np.isneginf(expected).any() == (plausible > 1e-6) and np.isfinite(expected).any()


def test_the_defaults() -> None:
    expert = logits_of(TARGET, TEXT)
    np.testing.assert_allclose(
        asked(Contrastive(SMALL), TEXT, expert), formula(expert, logits_of(SMALL, TEXT), 0.5, 0.1)
    )


def test_of_two_precisions() -> None:
    """Scores keep theirs, and are rounded once."""
    expert = logits_of(TARGET, TEXT)
    for dtype, close in ((torch.float64, 1e-9), (torch.float32, 1e-4), (torch.bfloat16, 0.004)):
        scores = torch.from_numpy(expert)[None].to(dtype)
        got = Contrastive(SMALL)(torch.tensor([TEXT]), scores)
        assert got.dtype == dtype and got.shape == scores.shape
        expected = formula(scores[0].double().numpy(), logits_of(SMALL, TEXT), 0.5, 0.1)
        np.testing.assert_allclose(got[0].double().numpy(), expected, rtol=close)


def worst(one: Contrastive, texts: list[list[int]], amateur: Any, size: int = SIZE, rows: int = 1) -> float:
    """The largest error, rows asked in turn by the same texts at other times."""
    flat, found = np.zeros(size), 0.0
    for n in range(len(texts)):
        for row in range(rows):
            text = texts[(n + 7 * row) % len(texts)]
            expected = formula(flat, logits_of(amateur, text), 0.5, 0.1)
            error = np.abs(asked(one, text, flat, row) - expected).max()
            found = max(found, float(np.nan_to_num(error, nan=np.inf)))
    return found


@pytest.mark.parametrize("piece", [1, 3, 2048])
def test_what_was_asked_before_does_not_count(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts that grow, lose their ends, get other ones, come again; three rows between each other."""
    monkeypatch.setattr(module, "PIECE", piece)
    assert worst(Contrastive(SMALL), random_texts(1, 60), SMALL, rows=3) < 1e-9
    monkeypatch.setattr(module, "REMEMBERED", 1)
    assert worst(Contrastive(SMALL), random_texts(2, 40), SMALL) < 1e-9


@pytest.mark.parametrize("kind", WINDOWED)
def test_windows_of_the_amateur(kind: str) -> None:
    """Longer texts than its windows, from which tokens are taken back."""
    amateur = WINDOWED[kind]()
    assert worst(Contrastive(amateur), random_texts(3, 40, VOCAB), amateur, VOCAB) < 1e-6


def test_a_stale_cache_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check above can fail: nothing cropped, too much believed to be common, what was said of other texts kept."""

    def cut(self: Any, length: int) -> None:
        self.cache.crop(length - len(self.tokens))
        self.tokens = self.tokens[:length]

    wrong = [
        (DynamicCache, "crop", lambda self, length: None),
        (module, "_common", lambda old, new: min(len(old), len(new))),
        (module._Row, "_cut", cut),
    ]
    for place, name, instead in wrong:
        with monkeypatch.context() as patch:
            patch.setattr(place, name, instead)
            assert worst(Contrastive(SMALL), random_texts(1, 60), SMALL) > 1e-3


def fed(one: Contrastive) -> list[int]:
    """How many tokens each forward of the amateur gets from now on."""
    found: list[int] = []
    one._amateur.twin.register_forward_pre_hook(
        lambda m, args, kwargs: found.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    return found


def test_only_what_differs_is_fed() -> None:
    one, flat = Contrastive(SMALL), np.zeros(SIZE)
    lengths = fed(one)
    text = list(range(10))
    asked(one, text, flat)
    for n in range(3):  # drafted one after another, then verified
        asked(one, [*text, *[4, 5, 6][: n + 1]], flat)
    assert lengths == [10, 1, 1, 1]
    for n in range(4):
        asked(one, [*text, *[4, 5, 6][:n]], flat)
    assert lengths == [10, 1, 1, 1]  # nothing anew
    asked(one, [*text, 4, 9], flat)  # one was accepted, another one came
    asked(one, [*text, 4, 9, 2, 3], flat)
    asked(one, [*text, 4, 9, 2], flat)  # within what is held, but never asked about: its last token
    assert lengths[4:] == [1, 2, 1]
    asked(one, [7, *text], flat)
    asked(one, text, flat, row=1)
    one.reset()
    asked(one, text, flat, row=1)
    assert lengths[7:] == [11, 10, 10]


def test_drafts_of_the_amateur_are_computed_once_for_both() -> None:
    """In generate: a forward for each draft and one more a round, after the prompt."""
    one = Contrastive(SMALL)
    lengths = fed(one)
    made = generate(TARGET, [TEXT], drafter=ModelDrafter(SMALL, stop=3), logits_processor=one, max_new_tokens=40)
    steps = sum(made.statistics.drafted) + made.statistics.rounds
    assert lengths[0] == 3 and len(lengths) <= steps and sum(lengths) <= 3 + steps


@cache
def both_after(new: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The target's logits after TEXT and some tokens, and the amateur's."""
    return logits_of(TARGET, [*TEXT, *new]), logits_of(SMALL, [*TEXT, *new])


@cache
def law(strength: float, plausible: float, tokens: int = 3) -> dict[tuple[int, ...], float]:
    """Of so many tokens after TEXT, by the formula."""
    step = {}
    for new in (after for n in range(tokens) for after in product(range(SIZE), repeat=n)):
        step[new] = np.exp(log_softmax(formula(*both_after(new), strength, plausible)))
    return {
        new: float(np.prod([step[new[:n]][new[n]] for n in range(tokens)]))
        for new in product(range(SIZE), repeat=tokens)
    }


def p_value(counts: Counter, expected: dict[tuple[int, ...], float]) -> float:
    """Of a chi-square test; rare outcomes count together; 0 where something came that cannot."""
    total = sum(counts.values())
    if any(expected[new] < 1e-12 for new in counts):
        return 0.0
    often = [new for new, p in expected.items() if p * total >= 5]
    bins = [counts[new] for new in often], [total * expected[new] for new in often]
    rest = total - sum(bins[0]), total - sum(bins[1])
    if rest[1] > 1e-6:
        bins[0].append(rest[0]), bins[1].append(rest[1])
    return float(chisquare(*bins).pvalue)


DRAFTERS = {
    "none": lambda: None,
    "the amateur": lambda: ModelDrafter(SMALL, stop=2),
    "another model": lambda: model(3),
    "copies": lambda: LookupDrafter(2, longest_ngram=1),
    "the amateur, drafted for": lambda: StagedDrafter(SMALL, drafter=LookupDrafter(2), length=2),
    "a relay": lambda: RelayDrafter((ModelDrafter(SMALL), 1), (LookupDrafter(2), 1)),
    "a tree of the amateur": lambda: ModelDrafter(SMALL, parents=(-1, -1, 0), siblings="without replacement"),
}


def drawn(one: Any, drafter: Any, rule: str = "residual") -> Counter:
    options: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 3, "seed": 5, "rule": rule}
    made = generate(TARGET, [TEXT] * ROWS, drafter=drafter, logits_processor=one, **options)
    return Counter(map(tuple, made.new_tokens))


OPTIONS = {"strength": 1.0, "plausible": 0.2}  # far from the target's own law


@pytest.mark.parametrize("name", DRAFTERS)
def test_drawn_tokens_have_the_law(name: str) -> None:
    assert p_value(drawn(Contrastive(SMALL, **OPTIONS), DRAFTERS[name]()), law(**OPTIONS)) > 1e-3


def test_drawn_tokens_under_block_verification() -> None:
    assert p_value(drawn(Contrastive(SMALL, **OPTIONS), ModelDrafter(SMALL, stop=2), "block"), law(**OPTIONS)) > 1e-3


def test_other_laws_are_noticed() -> None:
    """Nothing cut, another strength, the target's own; and a processor that looks at the prompt alone."""
    right = drawn(Contrastive(SMALL, **OPTIONS), SMALL)
    for strength, plausible in ((1.0, 1e-9), (0.0, 0.2), (0.0, 1e-9), (2.0, 0.2)):
        assert p_value(right, law(strength, plausible)) < 1e-6
    assert (
        p_value(drawn(Contrastive(SMALL, strength=1.0, plausible=1e-9), SMALL), law(**OPTIONS)) == 0
    )  # what cannot come came

    class OfThePrompt(Contrastive):
        def __call__(self, input_ids: Any, scores: Any, row: int = 0) -> Any:
            return super().__call__(input_ids[:, : len(TEXT)], scores, row)

    assert p_value(drawn(OfThePrompt(SMALL, **OPTIONS), SMALL), law(**OPTIONS)) < 1e-6


def by_hand(text: list[int], tokens: int, big: Any, amateur: Any, size: int) -> list[int]:
    """The likeliest tokens by the formula, each text computed whole."""
    text = list(text)
    for _ in range(tokens):
        text.append(int(formula(logits_of(big, text), logits_of(amateur, text), 0.5, 0.1).argmax()))
    return text


GREEDY = {
    "the amateur": lambda small: small,
    "lookup": lambda small: "lookup",
    "jacobi": lambda small: "jacobi",
    "a tree": lambda small: ModelDrafter(small, parents=TREE),
    "a tree that is drawn": lambda small: ModelDrafter(small, parents=TREE, siblings="with replacement"),
}


@pytest.mark.parametrize("name", GREEDY)
def test_greedy_tokens_are_those_without_drafts(name: str) -> None:
    big = target()
    small = near(big, 0.3)
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": 16}
    made = generate(big, prompts(), drafter=GREEDY[name](small), logits_processor=[Contrastive(small)], **options)
    plain = generate(big, prompts(), logits_processor=[Contrastive(small)], **options)
    assert made.sequences == plain.sequences == [by_hand(text, 16, big, small, VOCAB) for text in prompts()]
    assert sum(made.statistics.reached) > 0
    assert plain.sequences != generate(big, prompts(), **options).sequences


def test_under_a_plan() -> None:
    big = target()
    small = near(big, 0.3)
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": 16, "plan": MIXED}
    made = generate(big, prompts(), drafter=small, logits_processor=Contrastive(small), **options)
    assert made.sequences == generate(big, prompts(), logits_processor=Contrastive(small), **options).sequences


def test_the_contrast_of_the_amateur_with_itself_is_itself() -> None:
    logits = logits_of(SMALL, TEXT)
    log_a = log_softmax(logits)
    expected = np.where(log_a >= log_a.max() + np.log(0.1), log_a, -np.inf)
    np.testing.assert_allclose(asked(Contrastive(SMALL, strength=3.0), TEXT, logits), expected, atol=1e-9)


def test_the_same_object_in_two_calls() -> None:
    """Texts that share a beginning, other rows, fewer of them; and rows that are continued twice."""
    one, options = Contrastive(SMALL), {"temperature": 0, "max_new_tokens": 8}
    for texts in ([[1, 2, 3], [4, 5]], [[1, 2, 9]], [[7], [4, 5, 6], [1, 2, 3]]):
        made = generate(TARGET, texts, drafter=SMALL, logits_processor=one, **options)
        assert made.sequences == [by_hand(text, 8, TARGET, SMALL, SIZE) for text in texts]
    options = {"num_return_sequences": 3, "max_new_tokens": 8, "drafter": SMALL, "temperature": 1.0}
    drawn_before = generate(TARGET, [[7]], logits_processor=one, **options)
    assert drawn_before.sequences == generate(TARGET, [[7]], logits_processor=Contrastive(SMALL), **options).sequences
    assert len({tuple(row) for row in drawn_before.sequences}) > 1


def test_in_two_threads() -> None:
    """Two targets, one amateur; as alone, since the amateur does one thing at a time."""
    one, found = Contrastive(SMALL), {}
    inside, together = [0], []
    one._amateur.twin.register_forward_pre_hook(lambda *given: enter())
    one._amateur.twin.register_forward_hook(lambda *given: inside.__setitem__(0, inside[0] - 1))

    def enter() -> None:
        inside[0] += 1
        together.append(inside[0])
        sleep(0.002)

    targets = {seed: model(seed) for seed in (1, 4)}

    def work(seed: int) -> None:
        texts = [[seed, 2, 3], [seed, 5]]
        made = generate(targets[seed], texts, logits_processor=one, drafter="lookup", temperature=0, max_new_tokens=12)
        found[seed] = texts, made.sequences

    threads = [Thread(target=work, args=(seed,)) for seed in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, (texts, sequences) in found.items():
        assert sequences == [by_hand(text, 12, targets[seed], SMALL, SIZE) for text in texts]
    assert len(found) == 2 and set(together) == {1}


def test_the_amateur_is_left_as_it_was() -> None:
    """Its weights are shared, nothing else; so it may draft, run a plan, or be the target, at the same time."""
    amateur = model(2, scale=0.35, layers=4)
    one = Contrastive(amateur)
    pairs = list(zip(amateur.parameters(), one._amateur.twin.parameters(), strict=True))
    assert all(weight is other for weight, other in pairs)
    before = generate(TARGET, [TEXT], logits_processor=one, temperature=0, max_new_tokens=6).sequences
    zigzag.attach(amateur, MIXED)
    assert generate(TARGET, [TEXT], logits_processor=one, temperature=0, max_new_tokens=6).sequences == before
    assert worst(one, random_texts(5, 20), zigzag.detach(amateur) or amateur) < 1e-9
    own = generate(amateur, [TEXT], logits_processor=one, temperature=0, max_new_tokens=6)
    assert own.sequences == generate(amateur, [TEXT], temperature=0, max_new_tokens=6).sequences
    amateur.train()
    assert worst(one, random_texts(5, 5), amateur) < 1e-9 and amateur.training


def test_dropout_is_not_for_the_amateur() -> None:
    amateur = model(2, scale=0.35, attention_dropout=0.5).train()
    one = Contrastive(amateur)
    assert worst(one, random_texts(5, 10), amateur.eval()) < 1e-9


def test_weights_that_change() -> None:
    """What was computed with the old ones goes; moved to another precision they are still the amateur's."""
    amateur = model(2, scale=0.35)
    one, texts = Contrastive(amateur), random_texts(6, 10)
    assert worst(one, texts, amateur) < 1e-9
    with torch.no_grad():
        amateur.model.layers[0].mlp.up_proj.weight.mul_(-1.5)
    assert worst(one, texts, amateur) < 1e-9
    amateur.lm_head.weight = torch.nn.Parameter(amateur.lm_head.weight.detach() * 0.5)
    assert worst(one, texts, amateur) < 1e-9
    amateur.to(torch.float32)
    assert 0 < worst(one, texts, amateur) < 1e-4
    amateur.lm_head = torch.nn.Linear(32, SIZE, bias=False)
    with pytest.raises(ArgumentError, match="other modules or adapters than when this was made; make a new one"):
        asked(one, TEXT, np.zeros(SIZE))


def test_a_forward_that_breaks_off_leaves_nothing() -> None:
    one, flat = Contrastive(SMALL), np.zeros(SIZE)
    asked(one, TEXT, flat)
    hook = one._amateur.twin.model.layers[1].register_forward_pre_hook(lambda *given: 1 / 0)
    for text in ([*TEXT, 4], [*TEXT, 4, 5]):
        with pytest.raises(ZeroDivisionError):
            asked(one, text, flat)
    hook.remove()
    assert worst(one, [[*TEXT, 5], [*TEXT, 5, 6]], SMALL) < 1e-9


def test_rows_that_have_ended_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """And of what was said in those that go on the last."""
    monkeypatch.setattr(module, "PATIENCE", 4)
    monkeypatch.setattr(module, "REMEMBERED", 8)
    one, flat = Contrastive(SMALL), np.zeros(SIZE)
    for row in range(8):
        asked(one, TEXT, flat, row)
    held = one._amateur.rows
    for n in range(100):  # rows 2 and 5 go on, in turn
        asked(one, [*TEXT, *[4] * n], flat, (2, 5)[n % 2])
        assert {2, 5} <= held.keys()
    assert held.keys() == {2, 5}
    assert held[2].cache.get_seq_length() == 101 and list(held[2].said) == [*range(87, 102, 2)]
    one.reset()
    assert not held


def test_rows_that_go_on_keep_their_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight rows, verifications of 20: each text is fed once, whatever was asked of other rows between."""
    monkeypatch.setattr(module, "PATIENCE", 20)
    one, flat = Contrastive(SMALL), np.zeros(SIZE)
    lengths = fed(one)
    for round_ in range(3):
        for row in range(8):
            for n in range(20):
                asked(one, [*TEXT, *[4] * (20 * round_ + n)], flat, row)
    assert sum(lengths) == 8 * (3 + 59)


@pytest.mark.parametrize(("own", "scores"), [(101, 102), (103, 102), (102, 102)])
def test_a_vocabulary_with_padding(own: int, scores: int) -> None:
    """What the amateur does not have keeps its probability, and is read as its last token; its padding is nothing."""
    amateur, text = model(2, scale=0.35, size=own), [1, 2, min(own, scores) - 1]
    expert = np.random.default_rng(0).normal(size=scores)
    logits = logits_of(amateur, text)[:scores]
    log_p, log_a = log_softmax(expert), log_softmax(logits)
    expected = np.append(1.5 * log_p[: len(logits)] - 0.5 * log_a, log_p[len(logits) :])
    np.testing.assert_allclose(asked(Contrastive(amateur, plausible=1e-9), text, expert), expected)
    if own < scores:
        beyond = asked(Contrastive(amateur, plausible=1e-9), [1, 2, own], expert)
        np.testing.assert_allclose(beyond, expected)


def test_what_the_amateur_finds_impossible() -> None:
    """Keeps its probability, where there would be an infinity; NaN comes through, for generate to refuse."""
    amateur = model(2, scale=0.35)
    hook = amateur.lm_head.register_forward_hook(
        lambda m, args, out: out.index_fill(-1, torch.tensor([2, 3]), -torch.inf)
    )
    one = Contrastive(amateur, plausible=0.05)
    hook.remove()
    expert = np.linspace(0.0, 2.0, SIZE)
    expert[3] = -np.inf
    got, log_p = asked(one, TEXT, expert), log_softmax(expert)
    assert got[2] == pytest.approx(log_p[2]) and np.isneginf(got[3]) and not np.isnan(got).any()
    broken = model(2)
    with torch.no_grad():
        broken.lm_head.weight.fill_(torch.nan)
    for temperature in (0.0, 1.0):
        with pytest.raises(ModelError, match="NaN or all -inf"):
            generate(TARGET, [TEXT], logits_processor=Contrastive(broken), temperature=temperature, max_new_tokens=3)


@pytest.mark.parametrize("strength", [-0.1, float("nan"), float("inf"), "1", True, None])
def test_a_strength_that_cannot_be(strength: Any) -> None:
    with pytest.raises(ArgumentError, match="Contrastive: strength must be a finite number of at least 0, got"):
        Contrastive(SMALL, strength=strength)


@pytest.mark.parametrize("plausible", [0, -0.1, 1.01, float("nan"), "1", True])
def test_a_share_that_cannot_be(plausible: Any) -> None:
    with pytest.raises(ArgumentError, match="Contrastive: plausible must be above 0 and at most 1, got"):
        Contrastive(SMALL, plausible=plausible)


def attached() -> Any:
    made = target()
    zigzag.attach(made, MIXED)
    return made


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (qwen3_next, r"cache must be one that can be cropped, .* layers with a state \(linear_attention\)"),
        (attached, r"the amateur runs a plan, and this must be made while its attention is its own"),
        (lambda: torch.nn.Linear(2, 2), "cannot be run over a cache that is cropped: a transformers decoder"),
        (lambda: target().to("meta"), "weights must be in memory, got some on the meta device"),
    ],
)
def test_an_amateur_that_cannot_be(make: Any, told: str) -> None:
    with pytest.raises(ArgumentError, match=f"Contrastive: .*{told}"):
        Contrastive(make())


def test_another_vocabulary() -> None:
    with pytest.raises(ArgumentError, match="vocabulary of 11 tokens, the scores are of 96; they must share"):
        generate(target(), [TEXT], logits_processor=Contrastive(SMALL), max_new_tokens=2)


def test_rows_are_asked_one_by_one() -> None:
    one, scores = Contrastive(SMALL), torch.zeros(1, SIZE)
    for ids in (torch.tensor([TEXT, TEXT]), torch.tensor(TEXT), torch.zeros(1, 0, dtype=torch.int64)):
        with pytest.raises(ArgumentError, match="ask about each row by itself"):
            one(ids, scores)
    with pytest.raises(ArgumentError, match="ask about each row by itself"):
        one(torch.tensor([TEXT]), torch.zeros(2, SIZE))


def test_a_rotation_that_depends_on_the_length() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    amateur = model(2, rope_parameters=rope, max_position_embeddings=16)
    one, flat = Contrastive(amateur), np.zeros(SIZE)
    assert worst(one, [[1] * 16, [2] * 10], amateur) < 1e-9
    with pytest.raises(ModelError, match="changes beyond 16 tokens"):
        asked(one, [1] * 17, flat)
