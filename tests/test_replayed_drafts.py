"""Whole drafts and trees as replayed steps: the tokens of the same calls without graphs, whatever drafts and verifies.

The graphs are functions that compute anew from a step's own buffers; tests/test_gpu_models.py has real ones.
"""

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from draft_heads import KINDS, random_head  # noqa: E402
from generations import PLANS, near, prompts, target  # noqa: E402
from models import tiny_glm4_moe, tiny_llama  # noqa: E402
from replays import FakeStep  # noqa: E402
from transformers import RepetitionPenaltyLogitsProcessor  # noqa: E402

from zigzag import generate  # noqa: E402
from zigzag.generation.drafting import (  # noqa: E402
    Confidence,
    GrownTree,
    Heuristic,
    LookaheadDrafter,
    LookupDrafter,
    ModelDrafter,
    drafter_of,
)
from zigzag.reference import best_tree  # noqa: E402

TREE = tuple(best_tree([0.6, 0.2, 0.1], 8)[0])
SHAPES = {
    "chain": {},
    "longer": {"stop": 0},
    "tree": {"parents": TREE},
    "drawn": {"parents": TREE, "siblings": "without replacement"},
}


def shaped(shape: str) -> dict[str, Any]:
    return {"stop": Heuristic(2, longest=4)} if shape == "longer" else SHAPES[shape]


def both(captured: list[FakeStep], make: Callable[[], Any], rows: Any, model: Any, **options: Any) -> list[Any]:
    """The same call without graphs and with them; all that was captured is replayed."""
    options = {"max_new_tokens": 24, "seed": 3, **options}
    plain = generate(model, rows, cuda_graphs=False, drafter=make(), **options)
    assert not captured
    replayed = generate(model, rows, drafter=make(), **options)
    assert captured and all(step.replays for step in captured)
    return [plain, replayed]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "pass"])
def test_trained_heads(captured: list[FakeStep], kind: str, shape: str, temperature: float) -> None:
    for make in (tiny_llama, tiny_glm4_moe) if shape == "chain" else (tiny_llama,):
        model = target(make)
        for plan in PLANS.values() if shape == "chain" else [PLANS["mixed"]]:
            head = random_head(kind, model)
            options = {"plan": plan, "temperature": temperature}
            plain, replayed = both(captured, lambda: drafter_of(head, **shaped(shape)), prompts(), model, **options)  # noqa: B023
            assert plain.sequences == replayed.sequences
            assert plain.statistics.reached == replayed.statistics.reached
            captured.clear()


@pytest.mark.parametrize("shape", SHAPES)
def test_another_model(captured: list[FakeStep], shape: str) -> None:
    model = target()
    plain, replayed = both(captured, lambda: ModelDrafter(near(model), **shaped(shape)), prompts(), model)
    assert plain.sequences == replayed.sequences and sum(replayed.statistics.reached) > 20


def test_a_draft_is_one_step(captured: list[FakeStep]) -> None:
    """Of a drafter that may be whole; not where it stops by what it sees, or a processor looks at the text."""
    model = target()

    def steps(drafter: Callable[[], Any], **options: Any) -> int:
        captured.clear()
        both(captured, drafter, prompts()[:1], model, **options)
        return sum(type(step.output) is tuple and len(step.output) == 2 for step in captured)

    assert steps(lambda: ModelDrafter(near(model), stop=3)) > 0
    assert steps(lambda: ModelDrafter(near(model), parents=TREE)) > 0
    assert steps(lambda: drafter_of(random_head("eagle", model), parents=TREE)) > 0
    assert steps(lambda: drafter_of(random_head("hydra", model))) > 0
    assert steps(lambda: ModelDrafter(near(model), stop=Confidence(0.0, 3))) == 0
    assert (
        steps(lambda: ModelDrafter(near(model), stop=3), logits_processor=[RepetitionPenaltyLogitsProcessor(1.3)]) == 0
    )


def test_lookahead(captured: list[FakeStep]) -> None:
    model = target()
    plain, replayed = both(captured, lambda: LookaheadDrafter(3, 3, 2), prompts()[:1], model, temperature=0)
    assert plain.sequences == replayed.sequences


def test_rows_that_leave(captured: list[FakeStep]) -> None:
    """Steps are captured anew for fewer rows."""
    model = target()
    options = {"temperature": 0, "max_new_tokens": 40, "eos_token_id": list(range(0, 60, 9))}
    plain, replayed = both(captured, lambda: ModelDrafter(near(model), parents=TREE), prompts(), model, **options)
    assert plain.sequences == replayed.sequences and len(set(map(len, plain.new_tokens))) > 1


def test_one_step_serves_all_trees_of_a_size(captured: list[FakeStep]) -> None:
    """They grow, and each is another: who sees whom is read anew."""
    model = target()
    head = random_head("eagle", model)

    def make() -> Any:
        return drafter_of(head, parents=GrownTree(6, 3, 2))

    plain, replayed = both(captured, make, prompts(), model, temperature=0)
    assert plain.sequences == replayed.sequences
    whole = [step.replays for step in captured if step.given[0].shape == (len(prompts()), 7)]
    assert len(whole) == 1 and whole[0] > 5


@pytest.mark.parametrize(("kind", "shape"), [("eagle", "drawn"), ("student", "chain")])
def test_what_was_captured_serves_the_next_call(captured: list[FakeStep], kind: str, shape: str) -> None:
    """Of a drafter that is kept and a cache that is emptied; not of another law, other weights, other rows."""
    model, text = target(), prompts()[:1]
    head = random_head(kind, model)
    drafter, cache = drafter_of(head, **shaped(shape)), None

    def captures(rows: Any = text, **options: Any) -> int:
        """Of a call whose tokens are those of one with nothing kept."""
        nonlocal cache
        options = {"max_new_tokens": 24, "seed": 3, **options}
        plain = generate(model, rows, drafter=drafter_of(head, **shaped(shape)), cuda_graphs=False, **options)
        captured.clear()
        if cache is not None:
            cache.reset()
        made = generate(model, rows, drafter=drafter, cache=None if len(rows) > 1 else cache, **options)
        cache = made.cache or cache
        assert made.sequences == plain.sequences
        return len(captured)

    assert captures() >= 3
    captures()  # what came once in the first call comes again
    assert captures() == 0
    captures(temperature=0.5), captures(temperature=0.5)
    assert captures(temperature=0.5) == captures() == 0
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    assert captures() >= 3
    captures()
    assert captures() == 0
    assert captures(prompts()) >= 3, "more rows"
    assert captures() >= 1, "of the drafter, for which these are other rows again"


@pytest.mark.parametrize("plan", PLANS.values())
def test_an_emptied_cache_holds_nothing_of_before(captured: list[FakeStep], plan: Any) -> None:
    """Other text, and a drafter on states that the cache's first call did not collect."""
    model, (one, other) = target(), ([*range(1, 40)], [*range(50, 20, -1)])
    options = {"plan": plan, "temperature": 0, "max_new_tokens": 16}
    cache = generate(model, [one], **options).cache
    for text in (other, one, other):
        cache.reset()
        drafter = drafter_of(random_head("eagle", model))
        made = generate(model, [text], drafter=drafter, cache=cache, **options)
        assert made.sequences == generate(model, [text], cuda_graphs=False, **options).sequences
        assert sum(made.statistics.reached) > 0


def test_a_drafter_that_is_kept_for_another_target(captured: list[FakeStep]) -> None:
    """Whose vocabulary is padded otherwise: what was captured for the first does not serve it."""
    small = tiny_llama(2, dtype=torch.float64, vocab_size=200)
    drafter = ModelDrafter(small, stop=3)
    for size in (200, 202, 200):
        model = tiny_llama(3, dtype=torch.float64, vocab_size=size)
        for _ in range(2):
            options = {"max_new_tokens": 20, "seed": 1}
            made = generate(model, [[1, 2, 3, 4]], drafter=drafter, **options)
            plain = generate(model, [[1, 2, 3, 4]], drafter=ModelDrafter(small, stop=3), cuda_graphs=False, **options)
            assert made.sequences == plain.sequences


def test_verdicts_on_trees_of_one_size_are_of_their_shapes(captured: list[FakeStep]) -> None:
    """Of a drafter of one's own, whose trees take turns."""
    model = target()

    class Turning(ModelDrafter):
        turn = 0

        def draft(self, request: Any) -> Any:
            self.turn += 1
            self.parents = ((-1, 0, 1), (-1, -1, 0), (-1, -1, -1))[self.turn % 3]
            return super().draft(request)

    options = {"temperature": 0, "max_new_tokens": 40}
    plain, replayed = both(captured, lambda: Turning(near(model), parents=(-1, 0, 1)), prompts()[:1], model, **options)
    assert plain.sequences == replayed.sequences and plain.statistics.reached == replayed.statistics.reached


@pytest.mark.parametrize("rule", ["residual", "typical", "lenient"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_verdicts_on_copies(captured: list[FakeStep], rule: str, temperature: float) -> None:
    """Captured by rule, its options and what shapes the law; a processed law by what shapes it too."""
    model, texts = target(), [[5, 9, 17, 3] * 6]
    drafter, cache = LookupDrafter(4), None
    for options in ({}, {"top_k": 5}, {"top_p": 0.6}, {"logits_processor": [RepetitionPenaltyLogitsProcessor(1.3)]}):
        for scale in (1.0, 1.7):
            given: dict[str, Any] = {"temperature": temperature * scale, "seed": 3, "max_new_tokens": 40, **options}
            plain = generate(model, texts, drafter=drafter, rule=rule, cuda_graphs=False, **given)
            if cache is not None:
                cache.reset()
            replayed = generate(model, texts, drafter=drafter, rule=rule, cache=cache, **given)
            cache = replayed.cache
            assert replayed.sequences == plain.sequences
    assert any(step.replays for step in captured)
