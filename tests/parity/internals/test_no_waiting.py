"""The torch rules never read a value on the host: such a read waits for the device, and breaks CUDA graphs."""

import inspect
import re
from functools import lru_cache
from importlib import import_module

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch.overrides import TorchFunctionMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from zigzag import ops, reference  # noqa: E402
from zigzag.backends import torch as torch_ops  # noqa: E402

READS = "item tolist numpy cpu __bool__ __int__ __float__ __index__ __contains__".split()
WAITING = """
_local_scalar_dense item is_nonzero equal nonzero argwhere masked_select unique _unique2 unique_consecutive
repeat_interleave bincount
lift_fresh scalar_tensor
""".split()  # the last line: data made on the host


class WaitsError(Exception):
    pass


class NoReads(TorchFunctionMode):
    """Refuses the methods that hand a tensor's values to Python."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in READS:
            raise WaitsError(func.__name__)
        return func(*args, **(kwargs or {}))


class NoWaiting(TorchDispatchMode):
    """Refuses what reads or copies values, also inside torch: sizes that depend on values, data from the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = args[1] if name in ("index", "index_put", "index_put_") else ()
        if name in WAITING or any(m is not None and m.dtype in (torch.bool, torch.uint8) for m in masks):
            raise WaitsError(str(func))
        return func(*args, **(kwargs or {}))


def unwatched(call, *args, **options):
    with NoReads(), NoWaiting():
        return call(*args, **options)


def inputs(ragged: bool, deterministic: bool) -> tuple:
    rng = np.random.default_rng(0)
    made = [rng.dirichlet(np.ones(7), (3, 4)), rng.dirichlet(np.ones(7), (3, 5)), rng.random((3, 5))]
    draft, target, uniforms = (torch.from_numpy(a).float() for a in made)
    ids = torch.from_numpy(rng.integers(0, 7, (3, 4)))
    counts = torch.tensor([0, 2, 4]) if ragged else None
    return ids, None if deterministic else draft, target, uniforms, {"num_draft_tokens": counts}


TREES = [[-1, 0, 1, 2], [-1, -1, 0, 0], [-1, -1, -1, -1]]


@pytest.mark.parametrize("front_door", [False, True], ids=["backend", "front door"])
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize("deterministic", [False, True], ids=["drawn", "deterministic"])
def test_no_rule_waits(front_door: bool, ragged: bool, deterministic: bool) -> None:
    ids, draft, target, uniforms, rest = inputs(ragged, deterministic)
    module = ops if front_door else torch_ops
    rest |= {"validate": False} if front_door else {}
    called = set()

    def run(op: str, *arrays, **options) -> None:
        unwatched(getattr(module, op), *arrays, **rest, **options)
        called.add(op)

    run("verify_greedy", ids, target)
    run("verify_relaxed", ids, target)
    run("verify_top_k", ids, target, k=2)
    run("verify_exact", ids, target, uniforms)
    run("verify_typical", ids, target, uniforms)
    run("verify_residual", ids, draft, target, uniforms)
    run("verify_block", ids, draft, target, uniforms)
    run("verify_lenient", ids, draft, target, uniforms, lenience=0.5)
    for parents in TREES:
        torch_ops.verify_tree_greedy(ids, target, parents=parents)  # what the tree is is sent once
        torch_ops.verify_tree_k_seq(ids, draft, target, uniforms, parents=parents)
        run("verify_tree_greedy", ids, target, parents=parents)
        run("verify_tree_k_seq", ids, draft, target, uniforms, parents=parents)
        for replacement in (True, False):
            for op in ("verify_tree_residual", "verify_tree_traversal"):
                run(op, ids, draft, target, uniforms, parents=parents, replacement=replacement)
    assert called == {op for op in reference.OPS if op.startswith("verify")}


@pytest.mark.parametrize("module", [torch_ops, ops], ids=["backend", "front door"])
def test_sampling_does_not_wait(module) -> None:
    _, _, target, uniforms, _ = inputs(False, False)
    unwatched(module.sample, target, uniforms)
    for options in ({}, {"temperature": 0.0}, {"temperature": 0.5, "top_k": 2, "top_p": 0.5, "min_p": 0.1}):
        unwatched(module.to_probs, target.log(), **options)


@pytest.mark.parametrize("module", [torch_ops, ops], ids=["backend", "front door"])
def test_routing_does_not_wait(module) -> None:
    _, _, target, _, _ = inputs(False, False)
    unwatched(module.route_experts, target[..., :6], target[0, 0, :6], top_k=2)
    unwatched(module.route_experts, target[..., :6], target[0, 0, :6], top_k=2, num_groups=3, top_groups=2)


@pytest.mark.parametrize("module", [torch_ops, ops], ids=["backend", "front door"])
def test_few_tokens_do_not_wait_for_experts(module) -> None:
    options = {"validate": False} if module is ops else {}
    ids, (gate_up, down) = torch.tensor([[3, 3, -1], [0, 7, 1]]), (torch.zeros(8, 6, 5), torch.zeros(8, 5, 3))
    unwatched(module.apply_experts, torch.zeros(2, 5), ids, torch.zeros(2, 3), gate_up, down, **options)


def launched(module) -> list[str]:
    """The names of the kernels that a module launches."""
    source = inspect.getsource(module)
    return sorted({*re.findall(r"\b(\w+)\[\(", source), *re.findall(r"\b[lL]aunch\(\s*([a-z_]\w*),", source)})


class Idle:
    """Stands for a kernel and launches nothing."""

    def __getitem__(self, grid):
        return lambda *args, **options: None


def test_nothing_waits_around_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """What surrounds the Triton kernels reads and copies nothing on the host, so CUDA graphs can hold it."""
    pytest.importorskip("triton", reason="triton is not installed")
    from zigzag.backends import triton as triton_ops
    from zigzag.backends.triton import experts as triton_experts
    from zigzag.backends.triton import head_scores as triton_scores
    from zigzag.backends.triton import linear as triton_linear
    from zigzag.backends.triton import norms as triton_norms
    from zigzag.backends.triton import prompt_experts
    from zigzag.backends.triton import rotary as triton_rotary
    from zigzag.backends.triton import rows as triton_rows
    from zigzag.backends.triton import sampling as triton_sampling
    from zigzag.backends.triton import swiglu as triton_swiglu
    from zigzag.backends.triton import verification as triton_verification

    attending = [import_module(f"zigzag.backends.triton.{name}") for name in ("attention", "mixed_attention", "parts")]
    verifying = (triton_rows, triton_sampling, triton_verification)
    others = (triton_scores, triton_experts, prompt_experts, triton_linear, triton_norms, triton_rotary, triton_swiglu)
    for module in (*attending, *verifying, *others):
        for name in launched(module):
            monkeypatch.setattr(module, name, Idle())
        if hasattr(module, "plan_of"):  # those that are kept have the kernels
            monkeypatch.setattr(module, "plan_of", lru_cache(module.plan_of.__wrapped__))
    states, at = torch.zeros(1, 2, 700, 4), torch.zeros(1, 2, dtype=torch.int64)
    half, where = states[:, :1], {"query_positions": at[:, :1]}
    few = {"full_groups": (True, False), "sink": 1, "recent": 1}
    triton_ops.mixed_attention(states[:, :, :1], half, half, half, half, **few)  # puts on the card once who is full
    for _ in range(2):
        unwatched(triton_ops.attention, states[:, :, :1], states, states)
        unwatched(triton_ops.attention, states[:, :, :1], states, states, **where, sink=1, recent=1)
        unwatched(triton_ops.mixed_attention, states[:, :, :1], half, half, half, half, **few)
    ids, draft, target, uniforms, rest = inputs(True, False)
    for temperature in (None, 0.0, 0.7):
        rest["temperature"] = temperature
        unwatched(triton_ops.verify_residual, ids, draft, target, uniforms, **rest)
        unwatched(triton_ops.verify_block, ids, draft, target, uniforms, **rest)
        unwatched(triton_ops.verify_exact, ids, target, uniforms, **rest)
        unwatched(triton_ops.verify_typical, ids, target, uniforms, **rest)
        unwatched(triton_ops.verify_relaxed, ids, target, **rest)
    unwatched(triton_ops.to_probs, target, temperature=0.7)
    states = torch.zeros(1, 2, 5, 4)
    unwatched(triton_ops.gate_gradient, states, states, states, states, sink=1, recent=1)
    for tokens in (1, 16):
        hidden, weights = torch.zeros(tokens, 5), torch.zeros(tokens, 2)
        experts = torch.zeros(8, 6, 5), torch.zeros(8, 5, 3)
        unwatched(triton_ops.apply_experts, hidden, weights.long(), weights, *experts)
    monkeypatch.setattr(prompt_experts, "SLAB", 16)
    hidden, weights, experts = torch.zeros(20, 8), torch.zeros(20, 2), (torch.zeros(4, 16, 8), torch.zeros(4, 8, 8))
    unwatched(triton_ops.apply_experts, hidden, weights.long(), weights, *experts)
    waves, heads, where = torch.zeros(1, 5, 4), torch.zeros(1, 5, 2, 4), torch.zeros(1, 5, dtype=torch.int64)
    given = {"buffers": triton_rotary.Buffers(states, states, where), "norms": (waves[0, 0], waves[0, 0])}
    unwatched(triton_rotary.rotate, heads, heads, heads, waves, waves, **given)
    unwatched(triton_linear.several, waves[0], 2 * [(torch.zeros(4, 4), waves[0, 0])])
    unwatched(triton_linear.several, waves[0], [(torch.zeros(4, 4), None)], added=waves[0])
    unwatched(triton_swiglu.swiglu, waves[0], torch.zeros(3, 4), torch.zeros(3, 4))
    unwatched(triton_norms.rms_norm, waves, waves[0, 0], 1e-5)
    unwatched(triton_norms.add_rms_norm, waves, waves, waves[0, 0], 1e-5)


def test_every_launch_is_found() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    from zigzag.backends.triton import experts as triton_experts
    from zigzag.backends.triton import linear as triton_linear
    from zigzag.backends.triton import norms as triton_norms
    from zigzag.backends.triton import prompt_experts
    from zigzag.backends.triton import rotary as triton_rotary
    from zigzag.backends.triton import swiglu as triton_swiglu
    from zigzag.backends.triton import verification as triton_verification

    assert launched(prompt_experts) == ["copy_rows", "sum_rows", "swiglu_rows"]
    assert launched(triton_verification) == ["judge", "recover", "sum_terms", "weigh"]
    assert launched(triton_experts) == ["activate", "combine"]
    assert launched(import_module("zigzag.backends.triton.attention")) == ["_kernel"]
    assert launched(import_module("zigzag.backends.triton.mixed_attention")) == ["mixed"]
    assert launched(import_module("zigzag.backends.triton.parts")) == ["_merge"]
    assert launched(import_module("zigzag.backends.triton.rows")) == ["scan"]
    assert launched(triton_rotary) == ["_rotate"] and launched(triton_norms) == ["_add_norm", "_norm"]
    assert launched(triton_linear) == ["_products"] and launched(triton_swiglu) == ["_swiglu"]


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.tolist(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.where(x > 0),
        lambda x: x.masked_select(x > 0),
        lambda x: x.cpu(),
        lambda x: x + torch.tensor([1, 2, 3]),
        lambda x: torch.where(x > 0, x, 7),
        lambda x: int(x[0]),
    ],
    ids="item bool tolist mask nonzero where select cpu host scalar int".split(),
)
def test_waiting_is_noticed(waits) -> None:
    with pytest.raises(WaitsError):
        unwatched(waits, torch.arange(3))


def test_validation_waits() -> None:
    ids, draft, target, uniforms, rest = inputs(False, False)
    with pytest.raises(WaitsError):
        unwatched(ops.verify_residual, ids, draft, target, uniforms, **rest)
