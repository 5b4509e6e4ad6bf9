"""What `zigzag.generate` refuses, and every kind of number, row and token that it takes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from generations import MIXED, TREE, near, prompts, target
from models import VOCAB, tiny_llama
from transformers import BatchEncoding, GenerationConfig

from zigzag import ArgumentError, ModelError, generate
from zigzag.generation.drafting import Confidence, Draft, Fixed, GrownTree, Heuristic, ModelDrafter
from zigzag.generation.drafting.vocabulary import check_vocabularies
from zigzag.generation.inputs import eos_tokens, real, token_rows, whole


class Bad:
    """A drafter that can be wrong in every way."""

    law, longest, parents = "one-hot", 3, None

    def __init__(self, draft: Draft, **changes) -> None:
        self.result = draft
        for name, value in changes.items():
            setattr(self, name, value)

    def draft(self, request) -> Draft:
        return self.result

    def observe(self, drafted, accepted) -> None:
        pass

    def select(self, rows) -> None:
        pass


def ids(*rows: list[int]) -> Draft:
    return Draft(np.array(rows), np.array([len(row) for row in rows]))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"drafter": Bad(ids([VOCAB, 1]))}, ArgumentError, "outside the vocabulary"),
        ({"drafter": Bad(ids([-1, 1]))}, ArgumentError, "drafted token -1"),
        ({"drafter": Bad(ids([1, 2], [1, 2]))}, ArgumentError, r"token_ids \[1, K\]"),
        ({"drafter": Bad(ids([1, 2, 3, 4]))}, ArgumentError, "at most 3"),
        ({"drafter": Bad(replace(ids([1, 2]), parents=(-1, -1)))}, ArgumentError, "drafted a tree, but has no"),
        ({"drafter": Bad(ids([1, 2]), law="dense")}, ArgumentError, "law is dense"),
        ({"drafter": Bad(ids([1, 2]), law="unknown")}, ArgumentError, "law is unknown"),
        ({"drafter": Bad(ids([1, 2]), longest=99), "plan": MIXED}, ArgumentError, "spare=99"),
        ({"drafter": "prompt"}, ArgumentError, "'lookup', 'suffix', 'adaptive', 'jacobi', 'lookahead', 'streaming'"),
        ({"rule": "rejection"}, ArgumentError, "residual, block"),
        ({"rule": "greedy", "temperature": 0.5}, ArgumentError, "temperature 0 only"),
        ({"rule": "k_seq"}, ArgumentError, "several drafts"),
        ({"temperature": -1.0}, ArgumentError, "temperature"),
        ({"top_p": 0.0}, ArgumentError, "top_p"),
        ({"max_new_tokens": 0}, ArgumentError, "max_new_tokens"),
        ({"seed": [1, 2]}, ArgumentError, "each of the 1 rows"),
    ],
)
def test_bad_arguments(options: dict, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        generate(target(), [[1, 2, 3]], **{"temperature": 0, "max_new_tokens": 8, **options})


def test_bad_inputs() -> None:
    model = target()
    with pytest.raises(ArgumentError, match="at least one token"):
        generate(model, [[1], []])
    with pytest.raises(ArgumentError, match=r"tokens of row 0 must be in \[0, 96\)"):
        generate(model, [[VOCAB]])
    with pytest.raises(ArgumentError, match=r"tokens of row 0 must be in \[0, 96\)"):
        generate(model, [[1, -1]])
    with pytest.raises(ArgumentError, match="integers"):
        generate(model, torch.zeros(1, 3))
    for row in ([1.5], ["1"], 5):
        with pytest.raises(ArgumentError, match="rows of whole numbers"):
            generate(model, [row])
    with pytest.raises(ModelError, match="vocabulary of 50 tokens"):
        generate(model, [[1]], drafter=tiny_llama(2, vocab_size=50))
    with pytest.raises(ArgumentError, match="trees there are"):
        generate(model, [[1]], rule="block", drafter=ModelDrafter(near(model), parents=TREE))
    broken = target()
    with torch.no_grad():
        broken.lm_head.weight.fill_(torch.nan)
    with pytest.raises(ModelError, match="NaN"):
        generate(broken, [[1, 2]], temperature=0)


def test_probs_that_do_not_belong_to_the_tokens() -> None:
    probs = torch.zeros(1, 2, VOCAB, dtype=torch.float64)
    probs[..., 7] = 1
    drafter = Bad(Draft(np.array([[1, 2]]), np.array([2]), probs), law="dense")
    with pytest.raises(ArgumentError, match="probability 0"):
        generate(target(), [[1, 2, 3]], drafter=drafter, max_new_tokens=8)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_new_tokens": True}, "max_new_tokens must be a whole number"),
        ({"max_new_tokens": 2.0}, "max_new_tokens must be a whole number"),
        ({"max_new_tokens": "2"}, "max_new_tokens must be a whole number"),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"temperature": True}, "temperature must be a number"),
        ({"temperature": float("nan")}, "temperature must be a finite"),
        ({"top_k": 1.5}, "top_k must be a whole number"),
        ({"top_k": -1}, "top_k must be a whole number"),
        ({"top_p": [0.9]}, "top_p must be a number"),
        ({"min_p": 2}, "min_p must be in"),
        ({"seed": None}, "seed must be one whole number"),
        ({"seed": -1}, "seed must be one whole number"),
        ({"seed": True}, "seed must be one whole number"),
        ({"seed": 2**64}, "seed must be one whole number"),
        ({"num_draft_tokens": 0, "drafter": "lookup"}, "num_draft_tokens must be a whole number"),
        ({"spare": -1}, "spare must be a whole number"),
        ({"num_return_sequences": 0}, "num_return_sequences must be a whole number"),
        ({"num_return_sequences": 2, "temperature": 0}, "the same row at temperature 0"),
        ({"num_return_sequences": 2, "seed": [1]}, "each of the 2 rows"),
        ({"drafter": object()}, "with law, longest, draft"),
        ({"logprobs": 5}, "logprobs must be True or False"),
        ({"on_tokens": 5}, "on_tokens must be callable"),
        ({"on_prefill": 5}, "on_prefill must be callable"),
        ({"prefill_chunk_size": 0}, "prefill_chunk_size"),
        ({"prefill_chunk_size": 2.5}, "prefill_chunk_size"),
        ({"generation_config": GenerationConfig(prefill_chunk_size=-1)}, "prefill_chunk_size"),
        ({"cuda_graphs": "yes"}, "cuda_graphs must be"),
        ({"tokenizer": "gpt2"}, "tokenizer must be"),
        ({"streamer": print}, r"put\(tokens\) and end\(\)"),
        ({"generation_config": {"top_k": 3}}, "must be a GenerationConfig"),
        ({"logits_processor": 5}, "logits_processor must be callables"),
        ({"logits_processor": [GenerationConfig]}, "not classes"),
        ({"stopping_criteria": ["stop"]}, "stopping_criteria must be callables"),
        ({"logits_processor": lambda ids: ids}, "called with"),
        ({"stopping_criteria": lambda: True}, "called with"),
        ({"stop": [""]}, "none of them empty"),
        ({"stop": 5}, "stop must be a string"),
        ({"stop": "x"}, "give tokenizer="),
    ],
)
def test_refused_by_name(options: dict, words: str) -> None:
    """Before any work: the model is never called."""
    model = target()
    model.forward = None
    with pytest.raises(ArgumentError, match=words):
        generate(model, [[1, 2, 3]], **{"temperature": 1, "max_new_tokens": 8, **options})


def test_numbers_of_every_kind() -> None:
    """NumPy's and torch's mean what Python's do."""
    plain = {"max_new_tokens": 6, "temperature": 0.5, "top_k": 5, "top_p": 0.75, "min_p": 0.0, "seed": 3, "spare": 9}
    model = target()
    want = generate(model, prompts()[:1], drafter="lookup", num_draft_tokens=2, **plain)
    kinds = (np.int64, np.float32), (np.uint8, np.float64), (torch.tensor, torch.tensor), (np.array, np.array)
    for kind, size in kinds:
        options = {name: size(value) if isinstance(value, float) else kind(value) for name, value in plain.items()}
        got = generate(model, prompts()[:1], drafter="lookup", num_draft_tokens=kind(2), **options)
        assert got.sequences == want.sequences
    for seed in (np.array([3]), torch.tensor([3]), (3,), [np.int32(3)]):
        got = generate(model, prompts()[:1], drafter="lookup", num_draft_tokens=2, **{**plain, "seed": seed})
        assert got.sequences == want.sequences
    assert whole("x", np.int64(5), 0) == 5 and type(whole("x", np.int64(5), 0)) is int
    assert real("x", np.float32(0.5)) == 0.5 and type(real("x", 1)) is float


def test_rows_of_every_kind() -> None:
    rows = [[5, 6, 7], [8, 9, 1]]
    kinds = (
        rows,
        tuple(map(tuple, rows)),
        torch.tensor(rows),
        torch.tensor(rows, dtype=torch.int32),
        np.array(rows),
        [np.array(row) for row in rows],
        [torch.tensor(row) for row in rows],
        BatchEncoding({"input_ids": rows}),
        {"input_ids": torch.tensor(rows), "token_type_ids": torch.zeros(2, 3)},
    )
    for given in kinds:
        assert token_rows(given, None) == rows
    mask, left = [[0, 1, 1], [1, 1, 0]], [[6, 7], [8, 9]]
    for seen in (mask, np.array(mask), np.array(mask) > 0, torch.tensor(mask), torch.tensor(mask) > 0):
        for given in (rows, np.array(rows), torch.tensor(rows)):
            assert token_rows(given, seen) == left
    assert token_rows(BatchEncoding({"input_ids": rows, "attention_mask": mask}), None) == left
    assert token_rows({"input_ids": torch.tensor(rows)}, mask) == left


@pytest.mark.parametrize(
    ("given", "mask", "words"),
    [
        ("hello", None, "input_ids must be tokens, got text; give tokenizer"),
        (["hello", "you"], None, "input_ids must be tokens, got text"),
        ([1, 2, 3], None, r"rows of whole numbers, as \[\[1, 2\]\]"),
        (torch.tensor([1, 2]), None, r"one row is \[1, T\]"),
        (np.array([1, 2]), None, r"one row is \[1, T\]"),
        (torch.ones(1, 1, 2).long(), None, r"generate: input_ids must be integers \[B, T\]"),
        (torch.ones(1, 2).bool(), None, "input_ids must be integers"),
        (np.ones((1, 2)), None, "input_ids must be integers"),
        (None, None, "input_ids must be rows of whole numbers"),
        ({"ids": [[1]]}, None, "input_ids are needed"),
        ({"input_ids": [[1]], "pixel_values": 1}, None, "pixel_values"),
        ({"input_ids": [[1]], "attention_mask": [[1]]}, [[1]], "came twice"),
        ([[1, 2]], [[1]], "attention_mask must be as input_ids"),
        (torch.ones(1, 2).long(), torch.ones(1, 3).long(), "attention_mask must be as input_ids"),
        ([[1, 2]], [[1, 2]], "1 for tokens and 0 for padding"),
        (torch.ones(1, 2).long(), torch.zeros(1, 2), "attention_mask must be integers"),
        ([[1, 2]], [[0, 0]], "at least one token"),
    ],
)
def test_rows_that_are_none(given, mask, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        token_rows(given, mask)


def test_eos_of_every_kind() -> None:
    for kind in (
        5,
        [5],
        (5,),
        {5},
        np.int64(5),
        np.array(5),
        np.array([5]),
        torch.tensor(5),
        torch.tensor([5]),
        [np.int32(5), torch.tensor(5)],
    ):
        assert eos_tokens(kind, 9) == frozenset({5})
    assert eos_tokens([5, 2], 9) == frozenset({2, 5}) and eos_tokens(None, 9) == eos_tokens([], 9) == frozenset()
    for wrong in (-1, 9, True, [True], "5", 5.0, [5, -1], torch.tensor([5.0]), torch.tensor(True)):
        with pytest.raises(ArgumentError, match=r"eos_token_id must be tokens in \[0, 9\)"):
            eos_tokens(wrong, 9)


def test_several_sequences_of_one_prompt() -> None:
    """Row by row as transformers orders them, each with a seed of its own; the prompts are not touched."""
    model, texts = target(), prompts()[:2]
    before = [list(text) for text in texts]
    got = generate(model, texts, num_return_sequences=3, max_new_tokens=8, seed=4)
    want = generate(model, [texts[0]] * 3 + [texts[1]] * 3, max_new_tokens=8, seed=[4, 5, 6, 7, 8, 9])
    assert got.sequences == want.sequences and texts == before
    assert len({tuple(new) for new in got.new_tokens[:3]}) == 3
    asked = GenerationConfig(num_return_sequences=3, do_sample=True)
    assert generate(model, texts, generation_config=asked, max_new_tokens=8, seed=4).sequences == got.sequences


def test_draft_vocabulary_with_padding() -> None:
    """Qwen2.5's pairs differ so: larger or smaller by padding, the tokens are those of plain decoding."""
    model = tiny_llama(3, dtype=torch.float64, vocab_size=400)
    texts = [[399, 5, 6, 5, 6], [7, 38, 1]]  # one holds a token that the smaller model does not have
    plain = generate(model, texts, temperature=0, max_new_tokens=12)
    for size in (397, 403):
        small = tiny_llama(3, dtype=torch.float64, vocab_size=size)
        with torch.no_grad():
            for name, weight in small.named_parameters():
                mine = model.get_parameter(name)
                weight[:400] = mine[: len(weight)]
            small.lm_head.weight[400:] = 9 * small.lm_head.weight[: max(0, size - 400)]  # padding that says much
        for options in ({}, {"parents": TREE}, {"parents": TREE, "siblings": "without replacement"}):
            got = generate(model, texts, temperature=0, max_new_tokens=12, drafter=ModelDrafter(small, **options))
            assert got.sequences == plain.sequences
        drawn = generate(model, texts[1:], drafter=small, max_new_tokens=12, top_k=3)
        assert drawn.statistics.acceptance > 0.5  # the drafts are the target's own, whatever stands in the padding


def test_draft_vocabulary_of_another_tokenizer() -> None:
    class Words:
        def __init__(self, count: int) -> None:
            self.count = count

        def get_vocab(self) -> dict[str, int]:
            return {str(n): n for n in range(self.count)}

    check_vocabularies(99, 100, None)
    for sizes in ((98, 100), (100, 98)):
        with pytest.raises(ModelError, match="they must share their tokenizer, and may differ by padding alone"):
            check_vocabularies(*sizes, None)
    model, small = target(), tiny_llama(2, dtype=torch.float64, vocab_size=50)
    generate(model, [[1]], drafter=small, tokenizer=Words(50), max_new_tokens=4)
    with pytest.raises(ModelError, match="share the tokenizer, which has 51 tokens, and may differ by padding alone"):
        generate(model, [[1]], drafter=small, tokenizer=Words(51), max_new_tokens=4)


class ThreeWords:
    """A tokenizer, as far as it is looked at."""

    def get_vocab(self) -> dict[str, int]:
        return {"a": 0, "b": 1, "c": 2}


def test_a_sibling_from_the_padding_of_the_draft_model() -> None:
    """Where q is used up siblings come from all that is left, also from what the draft model cannot read."""
    model, small = (tiny_llama(2, dtype=torch.float64, vocab_size=size) for size in (4, 3))
    drafter = ModelDrafter(small, parents=[-1, -1, -1, 0, 1, 2], siblings="without replacement")
    options = {"top_k": 1, "max_new_tokens": 6, "tokenizer": ThreeWords()}
    got = generate(model, [[1, 2]] * 9, drafter=drafter, **options)
    assert got.sequences == generate(model, [[1, 2]] * 9, **options).sequences


def test_a_token_that_only_the_target_has() -> None:
    """A processor may ask for it, also of the draft, which goes on as if it were its own last token."""
    model, small = (tiny_llama(2, dtype=torch.float64, vocab_size=size) for size in (4, 3))
    drafter = ModelDrafter(small)

    def force(ids, scores):
        return torch.full_like(scores, -torch.inf).index_fill(-1, torch.tensor([3]), 0.0)

    options = {"logits_processor": force, "tokenizer": ThreeWords(), "max_new_tokens": 11}
    got = generate(model, [[1, 2]], drafter=drafter, **options)
    assert got.new_tokens == [[3] * 11] and got.statistics.rounds == 3
    assert set(drafter.runner.tokens[0]) == {1, 2}


def test_law_with_a_draft_of_another_size() -> None:
    """Counts over 4,000 rows against the model's own law: what the draft cannot say comes from the residual."""
    from scipy.stats import chisquare

    model, rows = tiny_llama(2, dtype=torch.float64, vocab_size=4), 4000
    for size in (3, 5):
        small = tiny_llama(1, seed=7, dtype=torch.float64, vocab_size=size)
        got = generate(model, [[1, 2]] * rows, drafter=small, tokenizer=ThreeWords(), max_new_tokens=2, seed=11)
        counts = np.bincount([new[0] * 4 + new[1] for new in got.new_tokens], minlength=16)
        with torch.inference_mode():
            first = model(torch.tensor([[1, 2]])).logits[0, -1].softmax(-1)
            second = model(torch.tensor([[1, 2, a] for a in range(4)])).logits[:, -1].softmax(-1)
        expected = (first[:, None] * second).flatten().numpy() * rows
        assert chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 1e-3
        assert got.statistics.acceptance > 0.1


TEXTS = [[*range(1, 40)], [5, 6, 7], [*range(30, 50)]]


class TestPromptsInPieces:
    def found(self, **options):
        """(tokens, shapes of all forwards' inputs) of a call."""
        model, shapes = target(), []
        model.register_forward_pre_hook(
            lambda _, __, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
        )
        config = options.pop("config", {})
        result = generate(
            model,
            TEXTS,
            plan=MIXED,
            temperature=0,
            max_new_tokens=6,
            generation_config=GenerationConfig(**config),
            **options,
        )
        return result.sequences, shapes

    def test_the_tokens_are_the_same(self) -> None:
        whole, shapes = self.found()
        assert shapes[0] == (3, 38)
        for options in ({"prefill_chunk_size": 9}, {"config": {"prefill_chunk_size": 9}}):
            pieced, shapes = self.found(**options)
            assert pieced == whole
            assert [shape for shape in shapes if shape[1] > 1] == [(3, 3)] * 12 + [(3, 2)]

    def test_an_argument_goes_before_the_configuration(self) -> None:
        _, shapes = self.found(prefill_chunk_size=np.int64(30), config={"prefill_chunk_size": 9})
        assert shapes[0] == (3, 10)

    def test_progress(self) -> None:
        told: list[tuple[int, int]] = []
        self.found(prefill_chunk_size=30, on_prefill=lambda *both: told.append(both))
        assert told == [(10, 59), (21, 59), (41, 59), (59, 59)]

    @pytest.mark.parametrize("drafter", ["streaming", "model"])
    def test_drafters_read_prompts_in_pieces_too(self, drafter: str) -> None:
        whole, _ = self.found()
        own = {"streaming": "streaming", "model": near(target())}[drafter]
        pieced, shapes = self.found(prefill_chunk_size=12, drafter=own)
        assert pieced == whole and max(shape[0] * shape[1] for shape in shapes) <= 3 * 5


@pytest.mark.parametrize("rows", [[], torch.empty(0, 3, dtype=torch.int64)], ids=["list", "tensor"])
def test_no_rows(rows) -> None:
    with pytest.raises(ArgumentError, match="every row must have at least one token"):
        token_rows(rows, None)


@pytest.mark.parametrize("rows", [torch.ones(1, 3), [["1"]], [[1.5]]], ids=["floats", "text", "fractions"])
def test_what_is_no_row_of_tokens_is_named(rows) -> None:
    with pytest.raises(ArgumentError, match=r"^generate: input_ids must be"):
        token_rows(rows, None)


def test_a_drafter_that_is_made_says_itself_how_far_it_drafts() -> None:
    options = {"temperature": 0, "max_new_tokens": 4}
    drafter = ModelDrafter(target(), stop=3, whole=True)
    for most in (None, 3):
        generate(target(), prompts()[:1], drafter=drafter, num_draft_tokens=most, **options)
    with pytest.raises(ArgumentError, match=r"ModelDrafter drafts up to 3 tokens.*num_draft_tokens=4 would do nothing"):
        generate(target(), prompts()[:1], drafter=drafter, num_draft_tokens=4, **options)
    drafts = {
        count: generate(target(), prompts()[:1], drafter="lookup", num_draft_tokens=count, **options)
        for count in (None, 4)
    }
    assert drafts[None].statistics.tokens_per_verification == drafts[4].statistics.tokens_per_verification


@pytest.mark.parametrize("stop", [Fixed(3), Confidence(0.5), Heuristic()], ids=lambda stop: type(stop).__name__)
@pytest.mark.parametrize("parents", [TREE, GrownTree()], ids=["tree", "grown"])
def test_trees_ask_no_policy(stop: Fixed, parents: object) -> None:
    with pytest.raises(
        ArgumentError, match=f"ModelDrafter: .* asks no policy, so {type(stop).__name__} would do nothing"
    ):
        ModelDrafter(tiny_llama(1), stop=stop, parents=parents)
    assert ModelDrafter(tiny_llama(1), stop=stop).stop is stop
