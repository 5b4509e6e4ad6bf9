"""Rounds that go on by themselves: what comes is what rounds one by one give, and all is left as after these.

The graphs are functions that compute anew from a step's own buffers; tests/test_gpu_models.py has real ones.
"""

import random
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from draft_heads import random_head  # noqa: E402
from generations import MIXED, PLANS, near, prompts, target  # noqa: E402
from models import tiny_glm4_moe, tiny_llama  # noqa: E402
from replays import FakeStep  # noqa: E402
from test_mtp import easy  # noqa: E402

from zigzag import LayerPlan, ModelError, generate  # noqa: E402
from zigzag.generation import onward  # noqa: E402
from zigzag.generation.drafting import (  # noqa: E402
    GrownTree,
    Heuristic,
    LookupDrafter,
    ModelDrafter,
    MtpDrafter,
    drafter_of,
    streaming_drafter,
)
from zigzag.generation.drafting.draft import Request  # noqa: E402
from zigzag.generation.drafting.matching import copied, latest_place  # noqa: E402
from zigzag.generation.loop import Loop  # noqa: E402
from zigzag.generation.onward import Onward  # noqa: E402
from zigzag.reference import best_tree  # noqa: E402
from zigzag.reference.errors import CacheError  # noqa: E402

SEQUENCE_OF = {"medusa": 3, "hydra": 2, "blockwise": 3, "eagle": 3}


def drafters(model: Any) -> dict[str, Callable[[], Any]]:
    heads = {kind: random_head(kind, model) for kind in SEQUENCE_OF}
    made: dict[str, Callable[[], Any]] = {
        kind: lambda head=head, kind=kind: drafter_of(head, SEQUENCE_OF[kind]) for kind, head in heads.items()
    }
    small = near(model)
    return {
        **made,
        "model": lambda: ModelDrafter(small, stop=4),
        "one draft": lambda: ModelDrafter(small, stop=1),
        "copies": lambda: LookupDrafter(5),
        "itself, streaming": lambda: streaming_drafter(4, sink=2, recent=8, stop=3),
        "itself, skipping": lambda: ModelDrafter(skip=(1, 2), stop=3),
    }


def both(make: Callable[[], Any], model: Any, rows: Any, **options: Any) -> Any:
    """The call whose rounds go on, equal to the one whose rounds go one by one in what it says of itself too."""
    options = {"max_new_tokens": 60, "seed": 3, **options}
    plain = generate(model, rows, drafter=make(), cuda_graphs=False, **options)
    onward = generate(model, rows, drafter=make(), **options)
    assert onward.sequences == plain.sequences and onward.finish_reasons == plain.finish_reasons
    for name in ("drafted", "accepted", "reached", "rounds", "forwards", "draft_steps"):
        assert getattr(onward.statistics, name) == getattr(plain.statistics, name), name
    assert onward.statistics.onward > 4 and not plain.statistics.onward
    return onward


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize(
    ("kind", "plan"),
    [
        *((kind, "mixed") for kind in (*SEQUENCE_OF, "model")),
        ("model", "full"),
        ("one draft", "full"),
        ("copies", "mixed"),
        ("itself, streaming", "mixed"),
        ("itself, skipping", "full"),
    ],
)
def test_the_same_tokens(captured: list[FakeStep], kind: str, plan: str, temperature: float) -> None:
    """Of rows of several lengths, beyond where the rings begin again."""
    model = target()
    made = both(drafters(model)[kind], model, prompts(), plan=PLANS[plan], temperature=temperature)
    assert made.statistics.onward > 0.5 * made.statistics.forwards
    assert any(step.replays > 9 for step in captured)


TREE = tuple(best_tree([0.6, 0.2, 0.1], 8)[0])
SIBLINGS = ("top", "without replacement", "with replacement")


@pytest.mark.parametrize(
    ("kind", "siblings", "temperature"),
    [
        *(("student", siblings, temperature) for siblings in SIBLINGS for temperature in (0.0, 0.9)),
        *((kind, "top", 0.9) for kind in ("medusa", "hydra", "eagle")),
        *((kind, "without replacement", 0.9) for kind in ("medusa", "hydra", "eagle")),
    ],
)
def test_trees(captured: list[FakeStep], kind: str, siblings: str, temperature: float) -> None:
    """Nodes that are kept move to their slots within the step, in full layers and rings."""
    model = target()
    small = near(model)
    make: dict[str, Callable[[], Any]] = {"student": lambda: ModelDrafter(small, parents=TREE, siblings=siblings)}
    if kind != "student":
        head = random_head(kind, model)
        make[kind] = lambda: drafter_of(head, parents=TREE if kind != "hydra" else TREE[:3], siblings=siblings)
    both(make[kind], model, prompts()[:3], plan=MIXED, temperature=temperature)


@pytest.mark.parametrize("rule", ["residual", "traversal", "k_seq"])
def test_every_rule_for_trees(captured: list[FakeStep], rule: str) -> None:
    model = target()
    small = near(model)
    siblings = "with replacement" if rule in ("k_seq",) else "without replacement"
    make = lambda: ModelDrafter(small, parents=TREE, siblings=siblings)  # noqa: E731
    both(make, model, prompts(), rule=rule, temperature=1.0, plan=MIXED)


@pytest.mark.parametrize("plan", [None, LayerPlan(("streaming",), 2, 6)], ids=["full", "streaming"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_mtp(captured: list[FakeStep], plan: Any, temperature: float) -> None:
    model, head = easy()
    texts = [[5, 9, 17, 3], [8, 2, 40, 41, 42], [60, 7]]
    made = both(lambda: MtpDrafter(head, stop=3, plan=plan), model, texts, temperature=temperature, max_new_tokens=100)
    assert made.statistics.acceptance > 0.25


@pytest.mark.parametrize("rule", ["residual", "block", "exact", "lenient"])
def test_every_rule_for_chains(captured: list[FakeStep], rule: str) -> None:
    model = target()
    both(drafters(model)["model"], model, prompts()[:2], rule=rule, temperature=1.0)
    both(drafters(model)["model"], model, prompts()[:2], rule=rule, temperature=0.7, top_k=9, top_p=0.95)


def test_experts(captured: list[FakeStep]) -> None:
    model = target(tiny_glm4_moe)
    head = random_head("eagle", model)
    both(lambda: drafter_of(head, 3), model, prompts(), plan=MIXED, temperature=0)


def test_rows_that_end(captured: list[FakeStep], monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stop token, drafted or not, or by room; the others go on without them, behind the round under way."""
    model, vain, commit = target(), [], Loop._commit

    def committed(self: Loop, *given: Any) -> None:
        vain.extend(row.index for row in self.alive if row.reason)
        commit(self, *given)

    monkeypatch.setattr(Loop, "_commit", committed)
    make = drafters(model)["model"]
    free = generate(model, prompts(), drafter=make(), temperature=0, max_new_tokens=50, cuda_graphs=False)
    ends = [free.new_tokens[0][17], free.new_tokens[2][30]]
    for temperature in (0.0, 0.8):
        for room in (50, 9, 3, 1):
            options: dict[str, Any] = {"temperature": temperature, "seed": 3, "max_new_tokens": room}
            plain = generate(model, prompts(), drafter=make(), cuda_graphs=False, eos_token_id=ends, **options)
            onward = generate(model, prompts(), drafter=make(), eos_token_id=ends, **options)
            assert (onward.sequences, onward.finish_reasons) == (plain.sequences, plain.finish_reasons)
    vain.clear()
    assert "eos" in generate(model, prompts(), drafter=make(), temperature=0, eos_token_id=ends).finish_reasons
    assert vain and len(vain) == len(set(vain))  # a row that ended is in one more round at most


@pytest.mark.parametrize("kind", ["eagle", "medusa", "model"])
def test_told_in_order_and_cancelled(captured: list[FakeStep], kind: str) -> None:
    """Each row's tokens come once; where somebody cancels, nothing of the round under way does."""
    model, made = target(), None
    make = drafters(model)[kind]
    told: dict[int, list[int]] = {}

    def hear(row: int, tokens: list[int]) -> bool:
        assert tokens
        told.setdefault(row, []).extend(tokens)
        return len(told[row]) > 20

    made = generate(model, prompts()[:3], drafter=make(), temperature=0, max_new_tokens=60, on_tokens=hear)
    assert [told[row] for row in range(3)] == made.new_tokens and "cancelled" in made.finish_reasons


@pytest.mark.parametrize("plan", PLANS)
def test_a_cache_that_comes_back_goes_on(captured: list[FakeStep], plan: str) -> None:
    """After it was cancelled, at a stop token, and after an error of the user's."""
    model, some = target(), prompts()[:1]
    make, options = drafters(model)["model"], {"plan": PLANS[plan], "temperature": 0}
    whole = generate(model, some, **options, max_new_tokens=90, cuda_graphs=False)
    first = generate(model, some, drafter=make(), **options, max_new_tokens=90, eos_token_id=whole.new_tokens[0][40:41])
    assert first.cache.tokens == [first.sequences[0][:-1]] and not first.cache.fed
    left = 90 - len(first.new_tokens[0])
    again = generate(model, first.sequences, drafter=make(), **options, max_new_tokens=left, cache=first.cache)
    assert again.sequences == whole.sequences and again.statistics.onward

    def broken(row: int, tokens: list[int]) -> None:
        raise KeyboardInterrupt

    held = [list(row) for row in again.cache.tokens]
    with pytest.raises(KeyboardInterrupt):
        generate(model, again.sequences, drafter=make(), **options, cache=again.cache, on_tokens=broken)
    assert again.cache.tokens == held
    more = {"max_new_tokens": 20, **options}
    after = generate(model, again.sequences, drafter=make(), cache=again.cache, **more)
    assert after.sequences == generate(model, again.sequences, cuda_graphs=False, **more).sequences


def test_captured_once_for_one_drafter(captured: list[FakeStep]) -> None:
    """The second call replays; where the head's weights are others it captures anew, and drafts by these."""
    model, some = target(), prompts()[:1]
    head = random_head("medusa", model)
    drafter = drafter_of(head, 3)
    options: dict[str, Any] = {"temperature": 0.9, "seed": 3, "max_new_tokens": 40, "drafter": drafter}
    first = generate(model, some, **options)
    first.cache.reset()
    again = generate(model, some, **options, cache=first.cache)
    assert again.sequences == first.sequences
    rounds = [step for step in captured if len(step.given) == 10]
    assert len(rounds) == 1 and rounds[0].replays > again.statistics.onward
    other = random_head("medusa", model, seed=5)
    with torch.no_grad():
        for weight, new in zip(head.parameters(), other.parameters(), strict=True):
            weight.data = new.detach().clone()
    again.cache.reset()
    changed = generate(model, some, **options, cache=again.cache)
    expected = generate(model, some, **{**options, "drafter": drafter_of(other, 3)}, cuda_graphs=False)
    assert changed.sequences == expected.sequences != first.sequences
    assert sum(len(step.given) == 10 for step in captured) == 2


@pytest.mark.parametrize(
    "options",
    [
        {"logprobs": True},
        {"spare": 9},
        {"logits_processor": lambda ids, scores: scores},
        {"stopping_criteria": type("Reads", (), {"reads_scores": True, "__call__": lambda *_: False})()},
        {"cuda_graphs": False},
        {"drafter": LookupDrafter(Heuristic(2, longest=4))},
        {"drafter": "grown"},
        {"drafter": "longer"},
        {"drafter": "of its own"},
    ],
    ids=lambda options: str(options.get("drafter", next(iter(options))))[:12],
)
def test_where_the_host_has_a_say(captured: list[FakeStep], options: Any) -> None:
    """Rounds go one by one where something looks at each, or a draft has no length of its own."""
    model = target()
    small = near(model)
    theirs = {
        "grown": lambda: ModelDrafter(small, parents=GrownTree(4, 2, 2)),
        "longer": lambda: ModelDrafter(small, stop=Heuristic(2, longest=4)),
        "of its own": lambda: type("Own", (ModelDrafter,), {})(small, stop=4),
    }
    made = options.get("drafter", ModelDrafter(small, stop=4))
    given = {**options, "drafter": theirs[made]() if isinstance(made, str) else made}
    result = generate(model, prompts()[:2], temperature=0, max_new_tokens=30, **given)
    assert not result.statistics.onward
    assert result.sequences == generate(model, prompts()[:2], temperature=0, max_new_tokens=30).sequences


def test_logits_that_are_no_numbers(captured: list[FakeStep]) -> None:
    """They end the call; -1, which stands for no token, is fed to nobody by the round under way."""
    model, seen = target(), []
    make = drafters(model)["medusa"]
    model.get_input_embeddings().register_forward_pre_hook(lambda module, given: seen.append(int(given[0].min())))
    model.lm_head.register_forward_hook(lambda module, given, output: output.fill_(torch.nan) if seen[9:] else None)
    with pytest.raises(ModelError, match="NaN"):
        generate(model, prompts()[:1], drafter=make(), temperature=0, max_new_tokens=40)
    assert min(seen) >= 0


def test_the_next_round_is_under_way_before_one_is_read(
    captured: list[FakeStep], monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    launch, fetched = Onward.launch, Onward.fetched
    monkeypatch.setattr(Onward, "launch", lambda self, *given: (order.append("begun"), launch(self, *given))[1])
    monkeypatch.setattr(Onward, "fetched", lambda self, *given: (order.append("read"), fetched(self, *given))[1])
    model = target()
    generate(model, prompts()[:1], drafter=drafters(model)["model"](), temperature=0, max_new_tokens=60)
    assert order[:5] == ["begun", "begun", "read", "begun", "read"] and order[-1] == "read"
    assert order.count("begun") == order.count("read")


def test_only_a_fixed_cache_goes_on() -> None:
    from zigzag.running.growing import GrowingStore
    from zigzag.running.host import Host
    from zigzag.running.onward import fed
    from zigzag.running.runner import Runner

    with Host(tiny_llama(2)) as host, pytest.raises(CacheError, match="fixed cache"):
        fed(Runner(host, GrowingStore(None, host.layers, host.device)), 1, 2)


@pytest.mark.parametrize("longest", [1, 3, 5])
def test_copies_found_on_the_device(longest: int) -> None:
    """As on the host: the longest n first, then the latest place; nothing of what lies behind a text's end."""
    rng = random.Random(longest)
    rows = [[rng.randrange(4) for _ in range(n)] for n in (1, 2, 3, 7, 40, 63, 64)] + [[5, 6, 7], [3, 3]]
    text = torch.full((len(rows), 64), 3)
    for kept, row in zip(text, rows, strict=True):
        kept[: len(row)] = torch.tensor(row)
    lengths = torch.tensor([len(row) for row in rows])
    found = copied(text, lengths, latest_place(text, lengths, longest), 6)
    for row, copies in zip(rows, found.tolist(), strict=True):
        expected = LookupDrafter(6, longest_ngram=longest).draft(Request([row], [6], [0], 0, None)).rows[0]
        assert copies == [*expected, *[-1] * (6 - len(expected))]
    assert 2 <= found[:, 0].tolist().count(-1) < len(rows) and (found[:, -1] < 0).any()


def test_copies_of_any_drafter_are_one_step(captured: list[FakeStep]) -> None:
    """Of texts of about one length: a name gives another drafter for each call."""
    model, cache = target(), None
    for count, new in ((900, 200), (30, 60), (50, 60)):
        text = [[5, 9, 17, 3, 8] * (count // 5)]
        options: dict[str, Any] = {"temperature": 0, "max_new_tokens": new, "drafter": "lookup"}
        plain = generate(model, text, cuda_graphs=False, **options)
        if cache is not None:
            cache.reset()
        made = generate(model, text, cache=cache, **options)
        cache = made.cache
        assert made.sequences == plain.sequences and made.statistics.accepted == plain.statistics.accepted
        assert made.statistics.onward
    assert [step.replays > 4 for step in captured if len(step.given) == 10] == [True, True]


def test_few_drafters_are_held_by_a_cache(captured: list[FakeStep], monkeypatch: pytest.MonkeyPatch) -> None:
    """Who gives another drafter in each call shall not fill the memory with them."""
    monkeypatch.setattr(onward, "KEPT", 2)
    model, cache = target(), None
    small = near(model)
    for _ in range(5):
        drafter = ModelDrafter(small, stop=2)
        if cache is not None:
            cache.reset()
        cache = generate(model, [[5, 9, 17]], drafter=drafter, temperature=0, max_new_tokens=30, cache=cache).cache
    named = [what for what in cache.store.steps._steps if what[0] == onward.ROUND]
    assert len(named) == 2 and named[-1][1][0] is drafter
