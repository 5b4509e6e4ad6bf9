"""Logits processors: which row they are told, how often they are asked, and which cannot be honoured."""

from collections import deque
from types import SimpleNamespace

import pytest
import torch
from generations import TREE, near, prompts, target
from models import VOCAB
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation import logits_process as theirs

from zigzag import ArgumentError, generate
from zigzag.generation.distribution import Distribution
from zigzag.generation.drafting import ModelDrafter
from zigzag.generation.processors import WITH_STATE, Asked, Processors, attributes, changed, takes_row

MODEL, TEXTS = target(), prompts()[1:3]
OPTIONS = {"temperature": 0, "max_new_tokens": 6}


class Count(LogitsProcessor):
    """Keeps a state: it counts how often it was asked, and forces that token."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, input_ids, scores):
        self.calls += 1
        return torch.full_like(scores, -torch.inf).index_fill(-1, torch.tensor([self.calls]), 0.0)


class CountRows(Count):
    """The same, of each row by itself."""

    def __init__(self) -> None:
        self.rows: dict[int, int] = {}

    def __call__(self, input_ids, scores, row):
        self.rows[row] = self.rows.get(row, 0) + 1
        return torch.full_like(scores, -torch.inf).index_fill(-1, torch.tensor([self.rows[row] + 40 * row]), 0.0)


def test_a_state_without_drafts() -> None:
    """Asked once for each new token, in order, as transformers asks it."""
    assert generate(MODEL, TEXTS[:1], logits_processor=Count(), **OPTIONS).new_tokens == [[1, 2, 3, 4, 5, 6]]
    drawn = generate(MODEL, TEXTS[:1], logits_processor=Count(), max_new_tokens=4, temperature=1.0)
    assert drawn.new_tokens == [[1, 2, 3, 4]]
    ids = torch.tensor(TEXTS[:1])
    made = MODEL.generate(
        ids, max_new_tokens=6, do_sample=False, pad_token_id=0, logits_processor=LogitsProcessorList([Count()])
    )
    assert made[0, ids.shape[1] :].tolist() == [1, 2, 3, 4, 5, 6]


def test_a_state_of_each_row() -> None:
    """`row` is the row's own place, also after another has left the batch."""
    got = generate(MODEL, TEXTS, logits_processor=CountRows(), eos_token_id=3, **OPTIONS)
    assert got.new_tokens == [[1, 2, 3], [41, 42, 43, 44, 45, 46]]


@pytest.mark.parametrize("declared", [True, None])
def test_a_state_where_it_would_go_wrong(declared: bool | None) -> None:
    """Refused before any work where it is declared, at the first change where it is seen."""
    model = target()
    for options, words in (
        ({"drafter": "lookup"}, "drafts ask about texts that may never be committed; leave out drafter="),
        ({}, "several rows are asked in turn; give one row, or take a parameter `row`"),
    ):
        one = Count()
        if declared:
            one.stateful, model.forward = True, None
        with pytest.raises(
            ArgumentError, match=("Count keeps a state, but " if declared else "changed its calls.*") + words
        ):
            generate(model, TEXTS, logits_processor=[one], **options, **OPTIONS)
        assert one.calls == (0 if declared else 1)
    one = CountRows()
    with pytest.raises(ArgumentError, match="changed its rows"):
        generate(target(), TEXTS, logits_processor=one, drafter=near(MODEL), **OPTIONS)


def test_a_memo_is_not_a_state() -> None:
    """What says stateful = False is not watched; transformers' own, which prepare tables, need not say it."""

    class Memo:
        stateful = False

        def __init__(self) -> None:
            self.table = {}

        def __call__(self, input_ids, scores):
            text = tuple(input_ids[0].tolist())
            banned = self.table.setdefault(text, sum(text) % VOCAB)
            return scores.index_fill(-1, torch.tensor([banned, (banned + 1) % VOCAB]), -torch.inf)

    biases = theirs.SequenceBiasLogitsProcessor([[[5], 2.0]])
    options = {"logits_processor": [Memo(), biases], **OPTIONS}
    want = generate(MODEL, TEXTS, **options)
    for drafter in (near(MODEL), ModelDrafter(near(MODEL), parents=TREE)):
        assert generate(MODEL, TEXTS, drafter=drafter, **options).sequences == want.sequences


def test_changes_are_seen() -> None:
    one = SimpleNamespace(
        number=1, text="a", items=[1], table={}, seen=set(), last=deque([1]), tensor=torch.zeros(2), other=object()
    )

    def after(change) -> list[str]:
        before = attributes(one)
        change()
        return changed(before, attributes(one))

    assert after(lambda: None) == []
    assert after(lambda: setattr(one, "text", "".join(["a"]))) == []  # another object, the same text
    assert after(lambda: setattr(one, "number", 2)) == ["number"]
    assert after(lambda: setattr(one, "number", 2.0)) == ["number"]
    assert after(lambda: one.items.append(2)) == ["items"]
    assert after(lambda: one.items.__setitem__(0, 5)) == ["items"]
    assert after(lambda: one.table.update(a=1)) == ["table"]
    assert after(lambda: one.table.update(a=[])) == ["table"]
    assert after(lambda: one.seen.add(1)) == ["seen"]
    assert after(lambda: one.last.append(1)) == ["last"]
    assert after(lambda: one.tensor.add_(1)) == ["tensor"]
    assert after(lambda: setattr(one, "tensor", torch.ones(2))) == ["tensor"]
    assert after(lambda: setattr(one, "other", object())) == ["other"]
    assert after(lambda: setattr(one, "new", 1)) == ["new"]
    assert after(lambda: delattr(one, "new")) == ["new"]
    with torch.inference_mode():
        one.inside = torch.zeros(2)
        assert after(lambda: None) == []


def test_prefix_constraints_know_their_row() -> None:
    """transformers gives its function the row's place in the batch; rows that end leave the others theirs."""

    def allowed(batch_id: int, ids: torch.Tensor) -> list[int]:
        return [10 * (batch_id + 1) + len(ids) % 3, 7 if batch_id == 0 else 8]

    texts = [[1, 2, 3], [4, 5, 6]]
    one = theirs.PrefixConstrainedLogitsProcessor(allowed, 1)
    made = MODEL.generate(
        torch.tensor(texts),
        max_new_tokens=6,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=7,
        prefix_allowed_tokens_fn=allowed,
    )
    want = [[token for token in row[3:] if token] for row in made.tolist()]
    for drafter in (None, near(MODEL), ModelDrafter(near(MODEL), parents=TREE)):
        got = generate(MODEL, texts, logits_processor=[one], eos_token_id=7, drafter=drafter, **OPTIONS)
        assert got.new_tokens == want
    assert {token // 10 for token in want[1] if token != 8} <= {2}
    longer = {"temperature": 0, "max_new_tokens": 20, "drafter": near(MODEL, 0.0)}
    same = generate(MODEL, texts, logits_processor=[one], eos_token_id=want[0][0], **longer)
    assert [len(new) for new in same.new_tokens] == [1, 20] and same.statistics.rounds > 4
    assert same.statistics.accepted == same.statistics.reached  # the draft is told the row, too, not its place


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: theirs.UnbatchedClassifierFreeGuidanceLogitsProcessor(1.5, MODEL), "runs the model itself"),
        (lambda: theirs.ClassifierFreeGuidanceLogitsProcessor(1.5), "two rows of logits"),
        (
            lambda: theirs.EncoderRepetitionPenaltyLogitsProcessor(1.5, torch.ones(2, 3)),
            "set encoder_repetition_penalty",
        ),
        (lambda: theirs.EncoderNoRepeatNGramLogitsProcessor(2, torch.ones(2, 3)), "set encoder_no_repeat_ngram_size"),
        (lambda: theirs.RepetitionPenaltyLogitsProcessor(1.5, torch.tensor([1, 2])), "give one number, or none"),
    ],
)
def test_what_needs_other_rows_is_refused(make, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        generate(MODEL, TEXTS, logits_processor=[make()], **OPTIONS)


def test_synthid_keeps_a_state() -> None:
    def make():
        return theirs.SynthIDTextWatermarkLogitsProcessor(3, [1, 2], 1000, 0, 10, "cpu")

    ids = torch.tensor(TEXTS[:1])
    made = MODEL.generate(
        ids, max_new_tokens=6, do_sample=False, pad_token_id=0, logits_processor=LogitsProcessorList([make()])
    )
    assert generate(MODEL, TEXTS[:1], logits_processor=make(), **OPTIONS).sequences == made.tolist()
    for texts, drafter in ((TEXTS, None), (TEXTS[:1], "lookup")):
        with pytest.raises(ArgumentError, match="SynthIDTextWatermarkLogitsProcessor keeps a state"):
            generate(MODEL, texts, logits_processor=make(), drafter=drafter, **OPTIONS)


def test_what_comes_back_is_looked_at() -> None:
    for wrong, words in ((None, "NoneType"), (torch.zeros(VOCAB), r"\[96\]"), (torch.zeros(2, VOCAB), r"\[2, 96\]")):
        with pytest.raises(ArgumentError, match=rf"must return logits \[1, 96\], got {words}"):
            generate(MODEL, TEXTS[:1], logits_processor=lambda ids, scores, wrong=wrong: wrong, **OPTIONS)


def test_rows_by_their_index() -> None:
    """Not by their place among those that still run; with texts made only where a processor asks."""

    def own(ids, scores, row):
        return torch.full_like(scores, -torch.inf).index_fill(-1, torch.tensor([row]), 0.0)

    logits = torch.zeros(2, 4)
    with_rows = Distribution(processors=Processors([own], [[], [], []], drafts=True))
    assert with_rows.next_token([2, 0], logits, lambda: [[1], [1]]).argmax(-1).tolist() == [2, 0]
    assert with_rows.processed(logits[:, None], [2, 0], [[1], [1]], [[], []], []).argmax(-1).tolist() == [[2], [0]]
    without = Distribution(processors=Processors([], [[], [], []], drafts=True))
    assert without.next_token([2, 0], logits, None).shape == (2, 4)


def test_processed_in_float32() -> None:
    """As in transformers; a bfloat16 model's processed logits are not rounded again."""
    processors = Processors([lambda ids, scores: scores + 2**-12], [[]], drafts=True)
    logits = torch.ones(1, 2, 4, dtype=torch.bfloat16)
    out = Distribution(processors=processors).processed(logits, [0], [[1]], [[2]], [-1])
    assert out.dtype == torch.float32 and (out == 1 + 2**-12).all() and (logits == 1).all()


def test_a_processor_that_writes_in_place() -> None:
    """It gets a copy, so that nobody else's logits change."""
    processors = Processors([lambda ids, scores: scores.zero_()], [[]], drafts=True)
    logits = torch.ones(1, 4)
    Distribution(processors=processors).next_token([0], logits, lambda: [[1]])
    assert (logits == 1).all()


STATEFUL = ("SynthIDTextWatermarkLogitsProcessor", "WhisperNoSpeechDetection", "DiaEOSDelayPatternLogitsProcessor")


@pytest.mark.parametrize("name", STATEFUL)
def test_processors_of_transformers_that_keep_a_state(name: str) -> None:
    """Refused by name before they are asked, also where a class is made of one of them; for one row alone they work."""
    kind = getattr(theirs, name)
    for made in (kind, type("Own", (kind,), {})):
        processor = made.__new__(made)
        for options in ({"drafts": True, "rows": 1}, {"drafts": False, "rows": 2}):
            with pytest.raises(ArgumentError, match=f"{made.__name__} keeps a state"):
                Asked(processor, **options)
        assert not Asked(processor, drafts=False, rows=1).watched
    assert set(STATEFUL) == WITH_STATE


def test_a_builtin_is_told_no_row() -> None:
    """Nobody can say what it takes, so it is called with the two arguments that all are."""
    assert takes_row("logits_processor", max) is False
