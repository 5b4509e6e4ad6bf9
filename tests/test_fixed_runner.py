"""The cache at fixed addresses: the same histories as the growing one; graphs where there is a GPU."""

import os
import random

import pytest
import torch
from models import tiny_glm4_moe, tiny_llama
from replays import FakeStep
from test_runner import PLANS, assert_right, draw

from zigzag import CacheError
from zigzag.reference.trees import path_to
from zigzag.running import graphs as graphs_of_steps
from zigzag.running.fixed import FixedStore
from zigzag.running.host import Host
from zigzag.running.runner import Runner

TREES = (
    [-1, 0],
    [-1, 0, 0, 1],
    [-1, 0, 1, 0],
    [-1, 0, 1, 2],
    [-1, 0, 0, 1, 1, 2, 3],
    [-1, -1, 0, 1, 1],
)  # the last without a root of its own
PLANS_FIXED = {name: PLANS[name] for name in ("full", "mixed", "streaming")}
ON_GPU = torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1"
GPU = pytest.mark.skipif(not ON_GPU, reason="CUDA graphs need a GPU, and --device cuda")
MULTIPLE = 2  # of the error that bfloat16 costs transformers itself


def fixed(host: Host, plan, **options) -> Runner:
    return Runner(host, FixedStore(plan, host.layers, host.device, **options))


def histories(model, plan, rows: int, *, capacity: int, graphs: bool, rounds: int = 12) -> list:
    """(texts, logits) after each step of a random history."""
    rng = random.Random(rows)
    with Host(model) as host, torch.inference_mode():
        runner = fixed(host, plan, spare=9, capacity=capacity, graphs=graphs)
        texts = [draw(rng, rng.randint(3, 25)) for _ in range(rows)]
        checks = [([list(t) for t in texts], runner.sync(texts).logits[:, 0].clone())]
        for _ in range(rounds):
            if rng.random() < 0.3:
                for text in texts:
                    if (gone := rng.randint(0, 3)) and len(text) - gone > 1:
                        del text[-gone:]
                    text.extend(draw(rng, rng.randint(1, 12)))
                checks.append(([list(t) for t in texts], runner.sync(texts).logits[:, 0].clone()))
                continue
            fed = rng.randint(1, 6)
            ids = torch.tensor([draw(rng, fed) for _ in range(rows)]).to(runner.device)
            if rng.random() < 0.5:
                parents = rng.choice(TREES)
                ids = torch.tensor([draw(rng, len(parents)) for _ in range(rows)]).to(runner.device)
                logits = runner.feed(ids, parents=parents).logits.clone()
                kept = [path_to(parents, rng.randrange(-1, len(parents))) for _ in range(rows)]
                tokens = [[row[node] for node in path] for row, path in zip(ids.tolist(), kept, strict=True)]
                for text, new in zip(texts, tokens, strict=True):
                    text.extend(new)
                if all(kept):
                    last = logits[range(rows), [path[-1] for path in kept]].clone()
                    checks.append(([list(t) for t in texts], last))
                runner.keep(kept, tokens)
                assert runner.tokens == texts
                continue
            first = rng.randint(0, fed)  # at once, or in two feeds before one keep
            pieces = [runner.feed(piece).logits.clone() for piece in (ids[:, :first], ids[:, first:]) if piece.numel()]
            logits = torch.cat(pieces, dim=1)
            kept = [rng.randint(1, fed) for _ in range(rows)]
            tokens = [new[:count] for new, count in zip(ids.tolist(), kept, strict=True)]
            for text, new in zip(texts, tokens, strict=True):
                text.extend(new)
            checks.append(([list(t) for t in texts], logits[range(rows), [n - 1 for n in kept]].clone()))
            runner.keep([range(n) for n in kept], tokens)
            assert runner.tokens == texts
    return checks


@pytest.mark.parametrize(
    ("make", "name", "rows"),
    [(tiny_glm4_moe, "mixed", 3), *((tiny_llama, name, rows) for name in PLANS_FIXED for rows in (1, 3))],
)
def test_random_histories(make, name: str, rows: int) -> None:
    """A capacity of 8 is outgrown again and again, room for trees too; texts outgrow the ring."""
    model = make(4, dtype=torch.float64)
    for done, logits in histories(model, PLANS_FIXED[name], rows, capacity=8, graphs=False):
        assert_right(model, PLANS_FIXED[name], done, logits)


def test_unwritten_memory_is_never_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers that start as NaN change nothing."""
    empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *a, **k: empty(self, *a, **k).fill_(torch.nan))
    model, plan = tiny_llama(4, dtype=torch.float64), PLANS["mixed"]
    checks = histories(model, plan, 3, capacity=64, graphs=False)
    monkeypatch.undo()
    for done, logits in checks:
        assert_right(model, plan, done, logits)


def test_rows_leave() -> None:
    rng = random.Random(0)
    model, plan = tiny_llama(4, dtype=torch.float64), PLANS["mixed"]
    texts = [draw(rng, n) for n in (20, 4, 11)]
    with Host(model) as host, torch.inference_mode():
        runner = fixed(host, plan, spare=8, graphs=False)
        runner.sync(texts)
        runner.select([2, 0])
        texts = [texts[2] + draw(rng, 2), texts[0] + draw(rng, 3)]
        logits = runner.sync(texts).logits[:, 0]
    assert_right(model, plan, texts, logits)


def test_what_it_refuses() -> None:
    model = tiny_llama(4, dtype=torch.float64)
    with Host(model) as host, torch.inference_mode():
        runner = fixed(host, PLANS["mixed"], spare=3, graphs=False)
        runner.sync([list(range(1, 30))])
        runner.feed(torch.tensor([[1, 2, 3, 4, 5]]))
        with pytest.raises(CacheError, match="keeps the first tokens"):
            runner.keep([[0, 2]], [[1, 3]])
        with pytest.raises(CacheError, match="spare = 3"):
            runner.keep([[]], [[]])
        runner.keep([range(5)], [[1, 2, 3, 4, 5]])
        with pytest.raises(CacheError, match="spare = 3"):
            runner.take_back([4])
        runner.take_back([3])


@pytest.mark.parametrize("keep_hidden", [True, False])
def test_states_that_are_collected_outlive_the_next_replay(keep_hidden: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay writes into the graph's own memory."""
    monkeypatch.setattr(graphs_of_steps, "_captured", FakeStep)
    model = tiny_llama(4, dtype=torch.float64)
    with Host(model) as host, torch.inference_mode():
        runner = Runner(host, FixedStore(None, host.layers, host.device), keep_hidden=keep_hidden)
        runner.sync([[1, 2, 3]])
        for token in (4, 5):  # as it is, captured
            states = runner.feed(torch.tensor([[token]])).states
            runner.keep([[0]], [[token]])
        before = states.clone()
        again = runner.feed(torch.tensor([[6]])).states
    assert torch.equal(states, before) == keep_hidden and (again is states) == (not keep_hidden)


@GPU
@pytest.mark.parametrize("name", PLANS_FIXED)
def test_graphs_give_the_same_logits(name: str) -> None:
    """Bitwise: a replay runs the very same kernels. Steps come often enough to be captured."""
    model = tiny_llama(4, dtype=torch.float32).cuda()
    plain, replayed = (
        histories(model, PLANS_FIXED[name], 2, capacity=256, graphs=graphs, rounds=60) for graphs in (False, True)
    )
    for (texts, logits), (others, again) in zip(plain, replayed, strict=True):
        assert texts == others
        assert torch.equal(logits, again)


def errors(make) -> tuple[float, float]:
    """Relative errors of the last 5 tokens' logits in bfloat16, median token: ours from a graph, transformers' own."""
    half = make(4, dtype=torch.bfloat16).cuda()
    exact = make(4).cuda()
    exact.load_state_dict(half.state_dict())
    rng = random.Random(3)
    ids = torch.tensor([draw(rng, 300)], device="cuda")
    with torch.inference_mode():
        truth, theirs = (model(ids).logits[:, -5:].float() for model in (exact, half))
        with Host(half) as host:
            runner = fixed(host, None)
            runner.sync([ids[0, :-5].tolist()])
            for _ in range(3):  # as it is, captured, replayed
                ours = runner.feed(ids[:, -5:]).logits.float().clone()
                runner.keep([[]], [[]])
    size = truth.norm(dim=-1)
    mine, stock = (float(((logits - truth).norm(dim=-1) / size).median()) for logits in (ours, theirs))
    return mine, stock


@GPU
@pytest.mark.parametrize("make", [tiny_llama, tiny_glm4_moe])
def test_logits_beside_transformers(make) -> None:
    """A replayed step errs no more than a stated multiple of what transformers errs in the same precision."""
    mine, stock = errors(make)
    assert 0 < mine <= MULTIPLE * stock
    assert stock < 0.1
