"""Drafters by themselves: what lookup finds, what a tree of drafts looks like, what each says of its law."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import VOCAB, tiny_llama

from zigzag import ArgumentError, LayerPlan, generate
from zigzag.generation.distribution import Distribution
from zigzag.generation.drafting import GrownTree, LookupDrafter, ModelDrafter, Request, streaming_drafter
from zigzag.generation.drafting.draft import Draft, padded, until_stop
from zigzag.generation.drafting.drawn import _likeliest as likeliest
from zigzag.generation.drafting.lookup import _Index
from zigzag.generation.drafting.named import as_drafter
from zigzag.generation.drafting.termination import Certain, Confidence, EntropyBound, ExpectedGain, Heuristic
from zigzag.reference import best_tree, node_depths
from zigzag.reference.trees import path_to
from zigzag.running.runner import Host


def request(rows: list[list[int]], most: int = 99, round_: int = 0, temperature: float = 1.0) -> Request:
    distribution = Distribution(temperature)
    to_probs = partial(distribution.next_token, range(len(rows)))
    return Request(rows, [most] * len(rows), list(range(len(rows))), round_, to_probs)


def brute_force(tokens: list[int], longest: int, most: int) -> list[int]:
    """What followed the latest earlier occurrence of the longest n last tokens."""
    for n in range(min(longest, len(tokens)), 0, -1):
        for place in range(len(tokens) - 1, n - 1, -1):
            if tokens[place - n : place] == tokens[-n:]:
                return tokens[place : place + most]
    return []


rows = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=30), min_size=1, max_size=3)


@given(texts=rows, more=st.lists(st.integers(0, 3), max_size=12), longest=st.integers(1, 4), most=st.integers(0, 6))
def test_lookup_is_brute_force_lookup(texts: list[list[int]], more: list[int], longest: int, most: int) -> None:
    """Also when the text grows token by token, and when another text comes."""
    drafter = LookupDrafter(5, longest_ngram=longest)
    for n in range(len(more) + 1):
        grown = [text + more[:n] for text in texts]
        draft = drafter.draft(request(grown, most))
        for text, ids, count in zip(grown, draft.token_ids, draft.counts, strict=True):
            assert ids[:count].tolist() == brute_force(text, longest, min(5, most))
            assert (ids[count:] == -1).all()
    other = [text[::-1] for text in texts]
    draft = drafter.draft(request(other, most))
    assert draft.rows == [brute_force(text, longest, min(5, most)) for text in other]
    drafter.select([len(texts) - 1])
    assert drafter.draft(request([[*other[-1], 2]], most)).rows == [brute_force([*other[-1], 2], longest, min(5, most))]


def test_lookup_of_another_text() -> None:
    """One drafter, call after call: a text of the same length that ends alike is drafted from itself, and so is one
    that came in the middle. A new call of `generate` begins with round 0."""
    tail = [1, 2, 3, 4, 5, 6, 7, 8, 99]
    first, second = [20, 99, 21, 22, 23, *tail], [30, 99, 31, 32, 33, *tail]
    third = [40, 41, 99, 42, 43, 44, *tail]
    drafter, fresh = LookupDrafter(5), {}
    for text in (first, second, third, second, first):
        fresh[tuple(text)] = LookupDrafter(5).draft(request([text])).rows
        assert drafter.draft(request([text])).rows == fresh[tuple(text)] == [brute_force(text, 3, 5)]
    assert fresh[tuple(first)] == [[21, 22, 23, 1, 2]] and fresh[tuple(second)] == [[31, 32, 33, 1, 2]]
    assert fresh[tuple(third)] == [[42, 43, 44, 1, 2]]
    later = [*first, 50, 51, 20]
    assert drafter.draft(request([later], round_=1)).rows == [brute_force(later, 3, 5)] == [[99, 21, 22, 23, 1]]
    other = [60, 61, 62, 60, 61]
    assert drafter.draft(request([other], round_=2)).rows == [brute_force(other, 3, 5)] == [[62, 60, 61]]


def test_lookup_arguments() -> None:
    for wrong, words in ((0, "at least 1"), (Confidence(), "no probabilities"), (EntropyBound(), "no probabilities")):
        with pytest.raises(ArgumentError, match=words):
            LookupDrafter(wrong)


def test_lookup_with_a_policy() -> None:
    """One token less after a draft that failed, two more after one accepted whole."""
    drafter, text = LookupDrafter(Heuristic(3, longest=6)), [1, 2, 3, 4, 5, 6, 7, 8, 1]
    assert drafter.longest == 6
    for accepted, expected in ((0, 3), (2, 2), (4, 4), (0, 6)):
        draft = drafter.draft(request([text]))
        assert draft.counts.tolist() == [expected]
        drafter.observe(draft.counts.tolist(), [min(accepted, expected)])


def test_drafts_end_with_a_stop_token() -> None:
    """What stands behind it could never be emitted; ids beyond a row's count do not matter."""
    ids, probs = np.array([[4, 7, 5, 6], [4, 4, -1, -1], [9, 1, 1, 1]]), torch.rand(3, 4, 10)
    cut = until_stop(Draft(ids, np.array([4, 2, 4]), probs), {7, 9})
    assert cut.counts.tolist() == [2, 2, 1] and cut.token_ids.tolist() == ids[:, :2].tolist()
    assert torch.equal(cut.probs, probs[:, :2])
    unchanged = Draft(ids, np.array([4, 2, 4]))
    assert until_stop(unchanged, {8}) is unchanged
    assert until_stop(unchanged, ()) is unchanged
    empty = Draft(*padded([[], []]))
    assert until_stop(empty, {7}) is empty


def test_tree_of_likeliest_tokens() -> None:
    model, parents = tiny_llama(3, dtype=torch.float64), best_tree([0.6, 0.2, 0.1], 7)[0]
    drafter = ModelDrafter(model, parents=parents)
    assert drafter.law == "one-hot" and drafter.longest == 7
    text = [5, 9, 2]
    with Host(model) as host, torch.inference_mode():
        drafter.open(host)
        draft = drafter.draft(request([text, [7]]))
    for row, start in enumerate((text, [7])):
        for node, parent in enumerate(parents):
            path, up = [], parent
            while up >= 0:
                path.insert(0, int(draft.token_ids[row, up]))
                up = parents[up]
            with torch.inference_mode():
                logits = model(torch.tensor([[*start, *path]])).logits[0, -1]
            siblings = [n for n in range(len(parents)) if parents[n] == parent]
            assert draft.token_ids[row, node] == logits.topk(len(siblings)).indices[siblings.index(node)]


@pytest.mark.parametrize("siblings", ["with replacement", "without replacement"])
def test_drawn_siblings(siblings: str) -> None:
    """Each node's row is the model's own after its path; without replacement siblings differ."""
    model, parents = tiny_llama(3, dtype=torch.float64), [-1, -1, -1, 0, 0]
    drafter = ModelDrafter(model, plan=LayerPlan(("full",) * 3, 1, 1), parents=parents, siblings=siblings)
    assert drafter.law == "dense"
    with Host(model) as host, torch.inference_mode():
        drafter.open(host)
        for round_ in range(5):
            draft = drafter.draft(request([[5, 9]], round_=round_))
            ids = draft.token_ids[0].tolist()
            assert draft.replacement is (siblings == "with replacement")
            assert siblings == "with replacement" or (len(set(ids[:3])) == 3 and ids[3] != ids[4])
            # the host is taken: ask another copy of the same weights
            for node, path in ((0, []), (2, []), (3, ids[:1])):
                want = tiny_llama(3, dtype=torch.float64)(torch.tensor([[5, 9, *path]])).logits[0, -1].softmax(-1)
                torch.testing.assert_close(draft.probs[0, node], want)


def test_a_tree_fits_the_room_that_is_left() -> None:
    model, parents = tiny_llama(3), (-1, -1, 0, 0, 1, 2)
    drafter = ModelDrafter(model, parents=parents)
    with Host(model) as host, torch.inference_mode():
        drafter.open(host)
        for most in (1, 2, 3, 9):
            draft = drafter.draft(request([[5, 9]], most))
            assert draft.counts[0] == (node_depths(parents) <= most).sum()
            assert (draft.token_ids[0, draft.counts[0] :] == -1).all()


def test_model_drafter_arguments() -> None:
    for options, words in (
        ({}, "a plan for the target"),
        ({"parents": [0]}, "parents"),
        ({"parents": [-1, 0, -1]}, "sorted by level"),
        ({"parents": [-1], "siblings": "some"}, "without replacement"),
    ):
        with pytest.raises(ArgumentError, match=words):
            ModelDrafter(None if not options else tiny_llama(2), **options)


def test_chain_draws_from_its_rows() -> None:
    """Chi-square of 3,000 first drafts against the row that the drafter says it drew them from."""
    from scipy.stats import chisquare

    model = tiny_llama(2, dtype=torch.float64)
    drafter = ModelDrafter(model, plan=LayerPlan(("full",) * 2, 1, 1), stop=2)
    with Host(model) as host, torch.inference_mode():
        drafter.open(host)
        draft = drafter.draft(request([[5, 9]] * 3000))
    row = draft.probs[0, 0].numpy()
    counts = np.bincount(draft.token_ids[:, 0], minlength=VOCAB)
    common = row * 3000 > 5
    seen, expected = [*counts[common], counts[~common].sum()], [*row[common] * 3000, row[~common].sum() * 3000]
    assert chisquare(seen, expected).pvalue > 1e-3


def test_a_path_leads_from_the_root_to_its_node() -> None:
    """Processors and the distribution of a node's children see the text in this order."""
    assert [path_to([-1, 0, 0, 1, 3], node) for node in (-1, 0, 2, 4)] == [[], [0], [0, 2], [0, 1, 3, 4]]


def test_a_round_without_drafts_teaches_nothing() -> None:
    """Where every row had room for one token only."""
    policy = Heuristic(5)
    policy.observe([0, 0], [0, 0])
    assert policy.length == 5
    policy.observe([], [])
    assert policy.length == 5
    policy.observe([5, 0], [5, 0])
    assert policy.length == 7


def test_what_is_not_said() -> None:
    """Defaults that users meet."""
    drafter = streaming_drafter(3)
    assert drafter.plan == LayerPlan(("streaming",) * 3, sink=16, recent=240) and drafter.longest == 4
    assert (EntropyBound().most, EntropyBound().longest) == (2.0, 20)


def test_drafts_beyond_a_row_s_room_are_none() -> None:
    with Host(tiny_llama(2)) as host, torch.inference_mode():
        drafter = ModelDrafter(plan=LayerPlan(("streaming",) * 2, 1, 3), stop=4)
        drafter.open(host)
        asked = request([[1, 2, 3], [4, 5, 6]])
        draft = drafter.draft(Request(asked.sequences, [1, 3], asked.seeds, 0, asked.to_probs))
    assert draft.counts.tolist() == [1, 3]
    assert (draft.token_ids >= 0).sum(axis=1).tolist() == [1, 3] and (draft.token_ids[0, 1:] == -1).all()


def test_how_long_drafts_are_is_handed_on() -> None:
    model = tiny_llama(2)
    assert streaming_drafter(2, stop=7).longest == 7
    assert as_drafter(None, model, 7) is None
    for drafter in ("lookup", "streaming", tiny_llama(2)):
        assert as_drafter(drafter, model, 7).longest == 7
        assert as_drafter(drafter, model, 2).longest == 2


class _Asked:
    """Drafts nothing and remembers what it was asked."""

    law, longest, parents = "one-hot", 9, None

    def __init__(self) -> None:
        self.most: list[list[int]] = []
        self.hidden: list = []

    def draft(self, request) -> Draft:
        self.most.append(list(request.most))
        self.hidden.append(request.hidden)
        return Draft(*padded([[] for _ in request.sequences]))

    def observe(self, drafted, accepted) -> None:
        pass

    def select(self, rows) -> None:
        pass


def test_what_a_drafter_is_asked_for() -> None:
    """At most all that is left but one, and states only if it wants them."""
    asked = _Asked()
    generate(tiny_llama(2), [[1, 2, 3], [4]], drafter=asked, temperature=0, max_new_tokens=4)
    assert asked.most == [[3, 3], [2, 2], [1, 1]] and asked.hidden == [None] * 3


def test_drafts_and_requests_do_not_change() -> None:
    for made, name in ((Request([[1]], [1], [0], 0, None), "round_"), (Draft(*padded([[1]])), "counts")):
        with pytest.raises(AttributeError):
            setattr(made, name, 1)


def test_a_draft_that_is_done_feeds_no_more() -> None:
    """A policy that stops after the first token costs one forward a round, not two."""
    model, calls = tiny_llama(2), []
    with Host(model) as host, torch.inference_mode():
        drafter = ModelDrafter(model, stop=Confidence(1.0, 5))
        drafter.open(host)
        with model.register_forward_hook(lambda *_: calls.append(1)):
            draft = drafter.draft(request([[1, 2, 3], [4, 5, 6]]))
    assert draft.token_ids.shape == (2, 1) and draft.counts.tolist() == [1, 1] and len(calls) == 1


@pytest.mark.parametrize("stop", [Confidence(0.999, 5), EntropyBound(1e-3, 5), Certain(0.999, 5)])
def test_greedy_drafts_end_by_what_the_drafter_itself_finds(stop: Any) -> None:
    """At temperature 0 the law that is drawn from is sure of every token; the drafter's own logits are not."""
    drafter = ModelDrafter(tiny_llama(2, seed=1), stop=stop)
    drafted = generate(tiny_llama(2), [[1, 2, 3]], drafter=drafter, temperature=0, max_new_tokens=8).statistics
    assert len(drafted.drafted) <= 1


def test_uncertainty_ends_a_draft() -> None:
    even, sure = torch.full((1, 4), 0.25), torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    bound = EntropyBound(1.0, 3)
    assert bound.before(even).tolist() == [True] and bound.before(sure).tolist() == [False]
    assert EntropyBound(1.4, 3).before(even).tolist() == [False]  # log 4 = 1.386


def test_expected_gain_by_hand() -> None:
    """It starts as after two tested drafts with one accepted, and forgets by 1 - 1 / memory."""
    gain = ExpectedGain(0.0, memory=2, longest=9)
    assert (gain.tested, gain.passed) == (2.0, 1.0)
    gain.observe([3, 2], [1, 2])
    assert (gain.tested, gain.passed) == (0.5 * (0.5 * 2 + 2) + 2, 0.5 * (0.5 * 1 + 1) + 2)
    with pytest.raises(ArgumentError, match="cost must be 0 or more"):
        ExpectedGain(-0.01)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=12), st.integers(0, 9))
def test_a_lookup_whose_tail_is_replaced(tails: list[list[int]], settled: int) -> None:
    """As within another drafter, whose drafts are rejected: what is found is what a new index finds."""
    text: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zigzag.generation.drafting.lookup.UNSETTLED", 12)
        index = _Index(3)
        for tail in tails:
            drafted = [*text, *tail]
            assert index.follows(drafted) and index.after(drafted, 5) == _Index(3).after(drafted, 5)
            text += tail[: settled % (len(tail) + 1)]
            assert text == [] or index.after(text, 5) == _Index(3).after(text, 5)


def test_a_lookup_remembers_the_end_of_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last eight settled tokens tell whether a text goes on; a draft of nothing is none."""
    monkeypatch.setattr("zigzag.generation.drafting.lookup.UNSETTLED", 0)
    index = _Index(3)
    assert index.follows([1, 2]) and index.after([5, 6, 5], 4) == [6, 5]
    assert (index.done, index.tail) == (3, [5, 6, 5])
    index.after(list(range(20)), 1)
    assert index.tail == list(range(12, 20)) and not index.follows([0, *range(20)])
    assert index.follows([*range(20), 7]) and not index.follows([*range(12), 99, *range(13, 20)])
    other = _Index(3)
    assert other.after([9], 4) == [] and other.after([9, 8, 7], 4) == []


def test_a_draft_does_not_change() -> None:
    with pytest.raises(AttributeError):
        Draft(*padded([[1, 2]])).counts = None


def test_more_siblings_than_tokens() -> None:
    model, few = tiny_llama(vocab_size=3), [[1, 2, 1]]
    wide = ModelDrafter(tiny_llama(vocab_size=3), parents=[-1] * 4)
    with pytest.raises(ArgumentError, match="parents has 4 siblings, the vocabulary 3 tokens; draft a narrower tree"):
        generate(model, few, drafter=wide, temperature=0, max_new_tokens=3)
    generate(model, few, drafter=ModelDrafter(model, parents=[-1] * 3), temperature=0, max_new_tokens=3)


@pytest.mark.parametrize("parents", [5, "grown", GrownTree, [], [-1.0, 0], [-1, True], None.__class__])
def test_what_is_no_tree(parents: Any) -> None:
    with pytest.raises(ArgumentError, match=r"^ModelDrafter: parents must be "):
        ModelDrafter(tiny_llama(2), parents=parents)


def test_trees_of_other_kinds_of_numbers() -> None:
    assert ModelDrafter(tiny_llama(2), parents=np.array([-1, 0, 0])).parents == (-1, 0, 0)
    assert ModelDrafter(tiny_llama(2), parents=torch.tensor([-1, 0])).parents == (-1, 0)


def test_siblings_are_the_likeliest_in_their_order() -> None:
    logits = torch.tensor([[[0.0, 5, 3, 4], [9, 1, 2, 3], [1, 2, 3, 4]]])
    assert [int(t) for t in likeliest(logits, [-1, -1, -1], [0, 1, 2])] == [1, 3, 2]
    tree = [-1, -1, -1, 0, 0, 2]
    assert [int(t) for t in likeliest(logits, tree, [3, 4, 5])] == [1, 3, 3]
