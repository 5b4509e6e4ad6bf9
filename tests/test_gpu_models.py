"""What only a GPU shows of models under plans: graphs over several windows, gradients, threads, trees, offloading."""

import os
import threading
from typing import Any

import numpy as np
import pytest
import torch
from draft_heads import KINDS, random_head
from models import random_ids, tiny_llama
from windowed_models import WINDOWED
from written_out import written_out

import zigzag
from zigzag import BackendError, LayerPlan
from zigzag.generation.drafting import GrownTree, ModelDrafter, drafter_of
from zigzag.reference import best_tree
from zigzag.running.fixed import FixedStore
from zigzag.running.growing import GrowingStore
from zigzag.running.host import Host
from zigzag.running.runner import Runner

ON_GPU = torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1"
pytestmark = pytest.mark.skipif(not ON_GPU, reason="needs a GPU, and --device cuda")
TWO = LayerPlan(("full", "streaming"), sink=2, recent=5)  # of the two full layers of a windowed model
PLAN = LayerPlan(("streaming", "full", "streaming"), sink=2, recent=6)
CLOSE = {"rtol": 2e-3, "atol": 2e-3}  # float32, other orders of sums


def expected(model: Any, ids: torch.Tensor, plan: LayerPlan) -> torch.Tensor:
    """Written out on the CPU in float64."""
    with written_out(model, plan.full_heads(2), sink=plan.sink, recent=plan.recent), torch.inference_mode():
        return model(ids, use_cache=False).logits.float()


GRAPHS = [name for name in WINDOWED if name != "gpt_oss"]  # whose grouped experts wait for the device in float32


@pytest.mark.parametrize("name", GRAPHS)
def test_steps_over_several_windows_are_graphs(name: str) -> None:
    """Run, captured, replayed: the logits of the masked computation each time, though rings differ in size."""
    exact = WINDOWED[name]()
    model = WINDOWED[name](dtype=torch.float32).cuda()
    text, steps = random_ids(1, 30)[0].tolist(), random_ids(5, 3, seed=4).tolist()
    with Host(model) as host, torch.inference_mode():
        runner = Runner(host, FixedStore(TWO, host.layers, host.device, spare=4, capacity=64))
        runner.fill([text])
        for step in steps:
            logits = runner.feed(torch.tensor([step], device="cuda")).logits[0].cpu().clone()
            runner.keep([[0, 1]], [step[:2]])
            wanted = expected(exact, torch.tensor([[*text, *step]]), TWO)[0, -3:]
            torch.testing.assert_close(logits, wanted, **CLOSE)
            text = [*text, *step[:2]]
        assert runner.store.captured(1, 3) is not None


def test_learned_sinks_in_graphs() -> None:
    """A replay gives the very logits of the step as it is, in bfloat16, and they are those of the masked computation
    within what that costs."""
    model = WINDOWED["gpt_oss"](dtype=torch.bfloat16).cuda()
    exact = WINDOWED["gpt_oss"]()
    text, step = random_ids(1, 30)[0].tolist(), [[5, 6, 7]]
    found = []
    with Host(model) as host, torch.inference_mode():
        for graphs in (True, False):
            runner = Runner(host, FixedStore(TWO, host.layers, host.device, spare=4, capacity=64, graphs=graphs))
            runner.fill([text])
            for _ in range(3):  # as it is, captured, replayed
                logits = runner.feed(torch.tensor(step, device="cuda")).logits[0].float().cpu().clone()
                runner.keep([[]], [[]])
            found.append(logits)
            assert not graphs or runner.store.captured(1, 3) is not None
    assert torch.equal(*found)
    wanted = expected(exact, torch.tensor([text + step[0]]), TWO)[0, -3:]
    without = expected(exact, torch.tensor([text + step[0]]), LayerPlan(("full", "full"), 2, 5))[0, -3:]
    error, effect = (float((one - wanted).norm() / wanted.norm()) for one in (found[0], without))
    assert error < 0.05 < 0.1 < effect  # on a CPU 0.013 and 0.13


@pytest.mark.parametrize("name", ["gemma3", "olmo3"])
def test_tokens_with_and_without_graphs(name: str) -> None:
    model = WINDOWED[name](dtype=torch.float32).cuda()
    ids = random_ids(1, 12).repeat(1, 2).cuda()
    options = {"plan": TWO, "temperature": 0, "max_new_tokens": 24}
    plain = zigzag.generate(model, ids, cuda_graphs=False, **options).sequences
    for drafter in (None, "lookup", "streaming"):
        assert zigzag.generate(model, ids, cuda_graphs=True, drafter=drafter, **options).sequences == plain


class Waiting(torch.nn.Module):
    """Asks the device something in every forward, as no graph can."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.inner(states) if float(states.sum()) < 1e30 else states


def test_a_step_that_cannot_be_captured(caplog: pytest.LogCaptureFixture) -> None:
    """It runs as it is; where graphs were asked for it is an error, and the model works afterwards."""
    ids, options = random_ids(1, 20).cuda(), {"plan": PLAN, "temperature": 0, "max_new_tokens": 12}
    wanted = zigzag.generate(tiny_llama().cuda(), ids, **options).sequences
    model = tiny_llama().cuda()
    model.model.layers[1].mlp = Waiting(model.model.layers[1].mlp)
    with caplog.at_level("INFO", logger="zigzag"):
        assert zigzag.generate(model, ids, drafter="lookup", **options).sequences == wanted
    assert "cannot be captured" in caplog.text
    assert torch.randn(3, device="cuda").isfinite().all(), "torch's own random numbers can be had as before"
    with pytest.raises(zigzag.ModelError, match="cannot be captured"):
        zigzag.generate(model, ids, cuda_graphs=True, **options)
    assert zigzag.generate(model, ids, cuda_graphs=False, **options).sequences == wanted


def test_experts_that_run_one_by_one_have_no_graphs() -> None:
    model = WINDOWED["gpt_oss"](dtype=torch.float32).cuda()
    model.set_experts_implementation("eager")
    with pytest.raises(zigzag.ArgumentError, match="experts run one by one"):
        zigzag.generate(model, random_ids(1, 9).cuda(), cuda_graphs=True)
    zigzag.generate(model, random_ids(1, 9).cuda(), max_new_tokens=4)


def test_a_tree_on_a_growing_cache() -> None:
    """Each node sees its own path: the logits of the path fed as a text."""
    model, exact = tiny_llama().cuda(), tiny_llama(dtype=torch.float64)
    text, nodes, parents = random_ids(1, 25)[0].tolist(), [7, 8, 9, 10, 11], [-1, -1, 0, 0, 3]
    with Host(model) as host, torch.inference_mode():
        runner = Runner(host, GrowingStore(PLAN, host.layers, host.device, spare=8))
        runner.fill([text])
        logits = runner.feed(torch.tensor([nodes], device="cuda"), parents=parents).logits[0].cpu()
    for node in range(len(nodes)):
        path, at = [], node
        while at >= 0:
            path, at = [nodes[at], *path], parents[at]
        wanted = expected(exact, torch.tensor([[*text, *path]]), PLAN)[0, -1]
        torch.testing.assert_close(logits[node], wanted, **CLOSE)
    drafter = ModelDrafter(plan=PLAN, parents=[-1, -1, 0, 0, 1])
    options = {"plan": PLAN, "temperature": 0, "max_new_tokens": 16, "cuda_graphs": False}
    plain = zigzag.generate(model, [text], **options).sequences
    assert zigzag.generate(model, [text], drafter=drafter, **options).sequences == plain


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_under_a_plan(checkpointing: bool) -> None:
    """Kernels give none: the automatic choice leaves them aside, naming them is an error."""
    model, exact = tiny_llama().cuda().train(), tiny_llama(dtype=torch.float64).train()
    ids = random_ids(2, 24)
    with written_out(exact, PLAN.full_heads(2), sink=2, recent=6):
        exact(ids, use_cache=False).logits.square().mean().backward()
    if checkpointing:
        (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()
    zigzag.attach(model, PLAN)
    model(ids.cuda()).logits.square().mean().backward()
    for one, other in zip(model.parameters(), exact.parameters(), strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad.cpu(), other.grad.float(), rtol=5e-3, atol=1e-4)
    with zigzag.use_backend("triton"), pytest.raises(BackendError, match="gives no gradients"):
        model(ids.cuda())
    with zigzag.use_backend("triton"), torch.no_grad():
        model(ids.cuda())


def test_two_threads_with_a_model_each() -> None:
    """Graphs are captured while the other thread works."""
    models = [tiny_llama(3, seed=seed).cuda() for seed in (0, 1)]
    ids = random_ids(1, 20).cuda()
    options = {"plan": PLAN, "temperature": 0, "max_new_tokens": 40}
    wanted = [zigzag.generate(model, ids, **options).sequences for model in models]
    found: list[Any] = [None, None]

    def run(place: int) -> None:
        for _ in range(4):
            found[place] = zigzag.generate(models[place], ids, drafter="lookup", **options).sequences

    threads = [threading.Thread(target=run, args=(place,)) for place in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == wanted


def test_offloaded_weights() -> None:
    accelerate = pytest.importorskip("accelerate")
    model, ids = tiny_llama(), random_ids(1, 20).cuda()
    options = {"plan": PLAN, "temperature": 0, "max_new_tokens": 12}
    wanted = zigzag.generate(tiny_llama().cuda(), ids, cuda_graphs=False, **options).sequences
    accelerate.cpu_offload(model, execution_device="cuda:0")
    assert zigzag.generate(model, ids, **options).sequences == wanted


def test_scores_on_a_gpu_are_those_of_the_cpu() -> None:
    """Through kernels, on a model whose plan leaves out layers."""
    from zigzag.measuring.prompts import Prompt

    row = random_ids(1, 40)[0].tolist()
    prompts = [Prompt(tuple(row[:-2]), tuple(row[-2:]), depth=0.0, seed=0)]
    for method in ("gate_gradient", "lost_mass", "output_deviation"):
        options = {"method": method, "sink": 2, "recent": 5, "prompts": prompts}
        there = zigzag.calibrate(WINDOWED["olmo3"](dtype=torch.float32).cuda(), **options)
        here = zigzag.calibrate(WINDOWED["olmo3"](), **options)
        np.testing.assert_allclose(there.values, here.values, rtol=1e-2, atol=1e-4)


TREE = tuple(best_tree([0.6, 0.2, 0.1], 8)[0])
SHAPES: dict[str, dict[str, Any]] = {
    "chain": {},
    "tree": {"parents": TREE},
    "drawn": {"parents": TREE, "siblings": "without replacement"},
    "grown": {"parents": GrownTree(6, 3, 2)},
}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_drafts_and_trees_in_graphs(kind: str, shape: str, temperature: float) -> None:
    """The tokens of the same call without graphs, under a plan, rows of several lengths."""
    model = tiny_llama(4, dtype=torch.float32).cuda()
    head = random_head(kind, model)
    plan = LayerPlan(("full", "streaming", "full", "streaming"), 4, 12)
    texts = [row[: 20 - 4 * n].tolist() for n, row in enumerate(random_ids(3, 20))]
    options = {"plan": plan, "temperature": temperature, "max_new_tokens": 30, "seed": 1}
    with_graphs, without = (
        zigzag.generate(model, texts, drafter=drafter_of(head, **SHAPES[shape]), cuda_graphs=graphs, **options)
        for graphs in (True, False)
    )
    assert with_graphs.sequences == without.sequences
    assert with_graphs.statistics.reached == without.statistics.reached
    if shape == "chain":  # rounds that go on by themselves
        assert bool(with_graphs.statistics.onward) == (kind not in ("exit", "pass"))
