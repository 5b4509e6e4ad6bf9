"""Feeding, keeping, taking back: whatever happened before, the next logits are those of a fresh forward."""

import random

import pytest
import torch
from models import VOCAB, tiny_glm4_moe, tiny_llama
from written_out import written_out

from zigzag import ArgumentError, CacheError, HeadPlan, LayerPlan, ModelError, PlanError
from zigzag.running.growing import GrowingStore
from zigzag.running.host import Host
from zigzag.running.runner import Runner

PLANS = {
    "full": None,
    "mixed": LayerPlan(("full", "streaming", "streaming", "full"), 2, 5),
    "streaming": LayerPlan(("streaming",) * 4, 2, 5),
    "heads": HeadPlan(((True, False), (False, False), (False, True), (True, True)), 2, 5),
}


def fresh(model, plan, tokens: list[int]) -> torch.Tensor:
    """Logits after `tokens`, by transformers itself; streaming layers by a mask over the whole prompt."""
    if isinstance(plan, HeadPlan):
        full_heads = plan.full_heads()
    else:
        full_heads = [[plan is None or not plan.is_streaming(i)] * 2 for i in range(model.config.num_hidden_layers)]
    plan = plan or LayerPlan(("full",), 1, 1)
    window = {"sink": plan.sink, "recent": plan.recent, "align": plan.align}
    with written_out(model, full_heads, **window), torch.inference_mode():
        return model(torch.tensor([tokens]), use_cache=False).logits[0, -1]


def growing(host: Host, plan, **options) -> Runner:
    return Runner(host, GrowingStore(plan, host.layers, host.device, **options))


def assert_right(model, plan, rows: list[list[int]], logits: torch.Tensor) -> None:
    close = 1e-5 if model.config.model_type == "glm4_moe" else 1e-9  # its router computes in float32
    for tokens, row in zip(rows, logits, strict=True):
        torch.testing.assert_close(row, fresh(model, plan, tokens), rtol=0, atol=close)


def draw(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(1, VOCAB) for _ in range(count)]


def path_to(parents: list[int], node: int) -> list[int]:
    path = []
    while node >= 0:
        path.insert(0, node)
        node = parents[node]
    return path


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize(
    ("make", "by_positions"),
    [(tiny_llama, False), (tiny_llama, True), (tiny_glm4_moe, False)],
    ids=["llama", "llama, as on a GPU", "glm"],
)
def test_random_histories(make, by_positions: bool, name: str, rows: int) -> None:
    """Chains, trees, tokens taken back and more fed, with rows at different lengths."""
    rng = random.Random(rows)
    model, plan = make(4, dtype=torch.float64), PLANS[name]
    with Host(model) as host, torch.inference_mode():
        runner = growing(host, plan, spare=8, by_positions=by_positions)
        texts = [draw(rng, rng.randint(3, 25)) for _ in range(rows)]
        checks = [([list(t) for t in texts], runner.sync(texts).logits[:, 0].clone())]
        for _ in range(20):
            if rng.random() < 0.3:
                for text in texts:
                    if (gone := rng.randint(0, 3)) and len(text) - gone > 1:
                        del text[-gone:]
                    text.extend(draw(rng, rng.randint(1, 3)))
                checks.append(([list(t) for t in texts], runner.sync(texts).logits[:, 0].clone()))
                continue
            fed = rng.randint(1, 6)
            parents = [-1, *(rng.randint(0, n - 1) if rng.random() < 0.5 else n - 1 for n in range(1, fed))]
            ids = torch.tensor([draw(rng, fed) for _ in range(rows)])
            logits = runner.feed(ids, parents=parents).logits
            kept = [path_to(parents, rng.randrange(fed)) for _ in range(rows)]
            tokens = [[new[n] for n in nodes] for new, nodes in zip(ids.tolist(), kept, strict=True)]
            for text, new in zip(texts, tokens, strict=True):
                text.extend(new)
            checks.append(([list(t) for t in texts], logits[range(rows), [nodes[-1] for nodes in kept]].clone()))
            runner.keep(kept, tokens)
            assert runner.tokens == texts
    for done, logits in checks:
        assert_right(model, plan, done, logits)


def test_rows_leave(name: str = "mixed") -> None:
    rng = random.Random(0)
    model, plan = tiny_llama(4, dtype=torch.float64), PLANS[name]
    texts = [draw(rng, n) for n in (20, 4, 11)]
    with Host(model) as host, torch.inference_mode():
        runner = growing(host, plan, spare=8)
        runner.sync(texts)
        runner.select([2, 0])
        texts = [texts[2] + draw(rng, 2), texts[0] + draw(rng, 3)]
        logits = runner.sync(texts).logits[:, 0]
    assert_right(model, plan, texts, logits)


def test_wrong_logits_are_noticed() -> None:
    model = tiny_llama(4, dtype=torch.float64)
    with pytest.raises(AssertionError):
        assert_right(model, None, [[1, 2, 3]], fresh(model, None, [1, 2, 4])[None])


def test_more_than_spare_is_refused() -> None:
    model = tiny_llama(4, dtype=torch.float64)
    with Host(model) as host, torch.inference_mode():
        runner = growing(host, PLANS["mixed"], spare=3)
        text = list(range(1, 30))
        runner.sync([text])
        runner.feed(torch.tensor([[1, 2, 3, 4, 5]]))
        with pytest.raises(CacheError, match="spare = 3"):
            runner.keep([[]], [[]])
        runner.keep([[0, 1, 2, 3]], [[1, 2, 3, 4]])  # after the refusal all is as it was
        with pytest.raises(CacheError, match="spare = 3"):
            runner.sync([text])
        longer = [*text, 1, 2, 3, 4, 9]
        logits = runner.sync([longer]).logits[:, 0]
    assert_right(model, PLANS["mixed"], [longer], logits)


def test_what_was_fed_is_kept_before_anything_else() -> None:
    model = tiny_llama(4, dtype=torch.float64)
    with Host(model) as host, torch.inference_mode():
        runner = growing(host, None, spare=3)
        runner.sync([[1, 2, 3]])
        runner.feed(torch.tensor([[4, 5]]))
        with pytest.raises(CacheError, match="2 tokens were fed and neither kept nor dropped"):
            runner.sync([[1, 2, 3, 4]])
        for too_early in (
            lambda: runner.feed(torch.tensor([[6]]), parents=[-1]),
            lambda: runner.take_back([1]),
            lambda: runner.select([0]),
        ):
            with pytest.raises(CacheError, match="2 tokens were fed and neither kept nor dropped"):
                too_early()
        with pytest.raises(ArgumentError, match="a token for each node"):
            runner.keep([[0]], [[4, 5]])
        runner.feed(torch.tensor([[6]]))
        runner.keep([[0, 1, 2]], [[4, 5, 6]])
        logits = runner.sync([[1, 2, 3, 4, 5, 6, 7]]).logits[:, 0]
    assert runner.tokens == [[1, 2, 3, 4, 5, 6, 7]] and runner.fed == 0
    assert_right(model, None, runner.tokens, logits)


def test_a_forward_that_breaks_off_voids_the_cache() -> None:
    """Some layers may hold the new tokens and some not."""
    model = tiny_llama(4, dtype=torch.float64)
    with Host(model) as host, torch.inference_mode():
        runner = growing(host, None, spare=3)
        runner.sync([[1, 2, 3]])
        stumble = model.model.layers[2].register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            runner.sync([[1, 2, 3, 4]])
        stumble.remove()
        assert host._states is None
        for call in (
            lambda: runner.sync([[1, 2, 3, 4]]),
            lambda: runner.feed(torch.tensor([[5]])),
            lambda: runner.take_back([1]),
            lambda: runner.select([0]),
        ):
            with pytest.raises(CacheError, match="broke off: start with a new one"):
                call()


@pytest.mark.parametrize("part", ["keep", "take_back", "select"])
def test_a_store_that_breaks_off_voids_the_cache(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when memory runs out half-way; a refusal, before anything is done, does not."""
    model = tiny_llama(4, dtype=torch.float64)
    calls = {
        "keep": lambda r: r.keep([[]], [[]]),
        "take_back": lambda r: r.take_back([1]),
        "select": lambda r: r.select([0]),
    }

    def stumble(error: Exception):
        def instead(*_):
            raise error

        return instead

    with Host(model) as host, torch.inference_mode():
        runner = growing(host, None, spare=3)
        runner.sync([[1, 2, 3]])
        for error in (CacheError("refused"), MemoryError("half-way")):
            monkeypatch.setattr(runner.store, part, stumble(error))
            with pytest.raises(type(error)):
                calls[part](runner)
        with pytest.raises(CacheError, match="broke off"):
            calls[part](runner)


def test_states_are_those_of_the_tokens_kept() -> None:
    """After two feeds before one keep, and after rows have left."""
    model = tiny_llama(4, dtype=torch.float64)
    with torch.inference_mode():
        true = [
            model.model(torch.tensor([row])).last_hidden_state[0] for row in ([1, 2, 3, 4, 5, 6], [9, 8, 7, 6, 5, 4])
        ]
    with Host(model) as host, torch.inference_mode():
        runner = Runner(host, GrowingStore(None, host.layers, model.device), keep_hidden=True)
        runner.sync([[1, 2], [9, 8]])
        assert host._states is None  # the runner's own are kept, not the model's last
        runner.feed(torch.tensor([[3, 4], [7, 6]]))
        runner.feed(torch.tensor([[5, 6], [5, 4]]))
        runner.keep([range(4), range(3)], [[3, 4, 5, 6], [7, 6, 5]])
        runner.select([1, 0])
        states = runner.take_hidden()
    torch.testing.assert_close(states[0], true[1][:5], rtol=0, atol=1e-9)
    torch.testing.assert_close(states[1], true[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize(("new", "words"), [((9, 2), "7 tokens would have"), ((40, 39), "at most 9 at once")])
def test_padding_that_could_not_be_forgotten_is_refused(new: tuple[int, int], words: str) -> None:
    """Before anything is fed: the same text goes in in pieces."""
    rng, model, plan = random.Random(0), tiny_llama(4, dtype=torch.float64), PLANS["mixed"]
    texts = [draw(rng, 20), draw(rng, 20)]
    with Host(model) as host, torch.inference_mode():
        runner = growing(host, plan, spare=4)
        runner.sync(texts)
        longer = [text + draw(rng, count) for text, count in zip(texts, new, strict=True)]
        with pytest.raises(CacheError, match=words):
            runner.sync(longer)
        assert runner.tokens == texts
        for end in range(20, max(map(len, longer)), 3):
            logits = runner.sync([text[: end + 3] for text in longer]).logits[:, 0]
    assert_right(model, plan, longer, logits)


def test_plan_of_another_model() -> None:
    with Host(tiny_llama(3)) as host, pytest.raises(PlanError, match="4 layers"):
        growing(host, PLANS["mixed"], spare=3)


def test_the_model_cannot_be_called_meanwhile() -> None:
    model = tiny_llama(2)
    with Host(model), pytest.raises(ModelError, match=r"zigzag\.generate"):
        model(torch.tensor([[1, 2]]))
    model(torch.tensor([[1, 2]]))
