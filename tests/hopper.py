"""Compiles the Triton kernels for a Hopper GPU where there is none: `python tests/hopper.py` prints what it compiled.

The ops are called as always, on CPU tensors; a launch compiles its kernel for sm_90 down to machine code and runs
nothing. So what is compiled is what a GPU would be given: the same arguments, constants and alignments. It must be a
process without TRITON_INTERPRET=1.
"""

import inspect
import json
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch
import triton
import triton.language as tl
from ptx import access_before_waiting
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

BACKENDS = Path(__file__).resolve().parents[1] / "backends/triton"
SIZES = {  # dtype: batch, drafts, vocabulary, head size, temperatures; different blocks, warps and alignments
    torch.float32: (2, 1, 5, 40, (None,)),
    torch.float16: (3, 4, 32003, 64, (0.0, 1.0)),
    torch.bfloat16: (16, 16, 152064, 128, (None, 0.7)),
}


class Hopper:
    """What Triton asks of a driver when it compiles."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compiling(found: list[tuple[str, str, int]], early: list[str]) -> Callable:
    """A `JITFunction.run` that compiles; appends (kernel, dtype of its first floats, bytes of machine code).

    early: gets the names of dependent launches that touch memory before they have waited
    """
    run = JITFunction.run

    def only_compile(self: JITFunction, *args, grid, warmup, **options):
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        floats = [a.dtype for a in args if isinstance(a, torch.Tensor) and a.is_floating_point()]
        found.append((self.__name__, str(floats[0]).removeprefix("torch."), len(kernel.asm["cubin"])))
        if options.get("launch_pdl"):
            early.extend(access_before_waiting(kernel.asm["ptx"]))
        return kernel

    return only_compile


def jitted(folder: Path = BACKENDS) -> dict[str, JITFunction]:
    """Every jitted function of the backend."""
    modules = [import_module(f"zigzag.backends.triton.{path.stem}") for path in sorted(folder.glob("*.py"))]
    return {n: f for module in modules for n, f in inspect.getmembers(module, lambda f: isinstance(f, JITFunction))}


def kernels(functions: dict[str, JITFunction]) -> set[str]:
    """The names of those that no other calls."""
    sources = "".join(function.src for function in functions.values())
    return {name for name in functions if not re.search(rf"(?<!def )\b{name}\(", sources)}


def verify_all(ops, dtype: torch.dtype, batch: int, drafts: int, vocabulary: int, temperatures: tuple) -> None:
    rows = torch.empty(batch, drafts + 1, vocabulary, dtype=dtype)
    ids, uniforms = torch.zeros(batch, drafts, dtype=torch.int64), torch.empty(batch, drafts + 1)
    counts = torch.zeros(batch, dtype=torch.int64)
    ops.verify_greedy(ids, rows)
    for temperature in temperatures:
        rest = {"temperature": temperature, "num_draft_tokens": None if temperature is None else counts}
        ops.verify_residual(ids, None, rows, uniforms, **rest)
        ops.verify_block(ids, rows[:, :drafts], rows, uniforms, **rest)
        ops.verify_exact(ids, rows, uniforms, **rest)
        ops.verify_typical(ids, rows, uniforms, **rest)
        ops.verify_relaxed(ids, rows, **rest)
        ops.verify_top_k(ids, rows, k=4, **rest)
        ops.to_probs(rows, temperature=temperature or 0.0)
    ops.sample(rows, uniforms)


def attend_all(ops, dtype: torch.dtype, size: int) -> None:
    states = torch.empty(1, 4, 256, size, dtype=dtype)
    window = {"sink": 4, "recent": 64, "align": 4}
    few = states[:, :2]
    ops.attention(states, few, few, **window)
    ops.attention(states[:, :, -3:], few, few, parents=[-1, 0])
    long = torch.empty(1, 2, 8192, size, dtype=dtype)
    ops.attention(states[:, :, -16:], long, long)
    many = torch.empty(1, 24, 16, size, dtype=dtype)  # 192 rows a KV head
    ops.attention(many, long, long)
    ops.mixed_attention(states, few[:, :1], few[:, :1], few[:, 1:], few[:, 1:], full_groups=(True, False), **window)
    ragged(ops, torch.empty(20, 4, size, dtype=dtype), states[:, :2].view(8, 2, 32, size), **window)
    ops.lost_mass(states, few, **window)
    ops.output_deviation(states, few, few, **window)
    ops.gate_gradient(states[:, :, -3:], few, few, states[:, :, -3:], parents=[-1, 0], **window)


def ragged(ops, query: torch.Tensor, pages: torch.Tensor, **window: int) -> None:
    """Rows that decode, and pieces of prompts."""
    rows = {"lengths": torch.full((2,), 40), "block_table": torch.zeros(2, 4, dtype=torch.int32)}
    ops.ragged_attention(query[:2], pages, pages, query_starts=torch.arange(3), max_queries=1, **rows, **window)
    starts = torch.tensor([0, 1, 20])
    ops.ragged_attention(query.repeat(4, 1, 1), pages, pages, query_starts=4 * starts, **rows, **window)


def mix_all(ops, dtype: torch.dtype, width: int) -> None:
    ops.route_experts(torch.empty(3, 160, dtype=dtype), torch.empty(160), top_k=8, num_groups=4, top_groups=2)
    gate_up, down = torch.empty(2, 2 * width, width, dtype=dtype), torch.empty(2, width, width, dtype=dtype)
    for tokens in (1, 5, 17):
        ids = torch.zeros(tokens, 3, dtype=torch.int64)
        ops.apply_experts(torch.empty(tokens, width, dtype=dtype), ids, torch.empty(tokens, 3), gate_up, down)


def step_all(dtype: torch.dtype, size: int) -> None:
    """What a layer's step runs beside the ops: a step with its cache, a prompt without, partly and wholly turned."""
    from zigzag.backends.triton.linear import several
    from zigzag.backends.triton.norms import add_rms_norm, rms_norm
    from zigzag.backends.triton.prompt_attention import join
    from zigzag.backends.triton.rotary import FEW, Buffers, rotate
    from zigzag.backends.triton.swiglu import swiglu

    for tokens, turned in ((1, size // 2), (FEW + 1, size)):
        query, key = (torch.empty(1, tokens, heads, size, dtype=dtype) for heads in (12, 2))
        waves, weight = torch.empty(1, tokens, turned, dtype=dtype), torch.empty(size, dtype=dtype)
        held = torch.empty(1, 2, 1024, size, dtype=dtype)
        buffers = Buffers(held, held, torch.zeros(1, tokens, dtype=torch.int64))
        rotate(query, key, key, waves, waves, norms=(weight, weight), eps=1e-5, buffers=buffers)
        rotate(query, key, key, waves, waves)
        states, weight = torch.empty(1, tokens, 32 * size, dtype=dtype), torch.empty(32 * size, dtype=dtype)
        add_rms_norm(states, states, weight, 1e-5)
        rms_norm(states, weight, 1e-5)
        if tokens == 1:
            large, small = (torch.empty(rows, 32 * size, dtype=dtype) for rows in (1200, 128))
            few = torch.empty(5, 32 * size, dtype=dtype)
            for states in (few[:1], few):
                several(states, [(large, large[:, 0].contiguous())] * 3)
                swiglu(states, large, large)
                several(states, [(small, None)], dtype=torch.float32)
                several(states, [(large, None)], added=states[:, :1].repeat(1, 1200))
        part = query.transpose(1, 2), torch.empty(1, 12, tokens)
        join(part, part)


@triton.jit
def broken(values):
    tl.store(values + tl.arange(0, 16), tl.arange(0, 32))  # shapes that do not fit


@triton.jit
def hasty(x, launch_pdl: tl.constexpr):
    number = tl.load(x)
    tl.extra.cuda.gdc_wait()
    tl.store(x, number + 1)


def fails(launch: Callable[[], object]) -> bool:
    try:
        launch()
    except triton.CompilationError:
        return True
    return False


def main() -> None:
    from zigzag.backends import triton as triton_ops
    from zigzag.backends.triton import blocks as triton_blocks
    from zigzag.backends.triton import launch as triton_launch

    found: list[tuple[str, str, int]] = []
    early: list[str] = []
    driver.set_active(Hopper())
    JITFunction.run = compiling(found, early)
    triton_blocks.multiprocessors = lambda device: 132
    triton_launch.is_able = lambda device: True
    for dtype, (batch, drafts, vocabulary, size, temperatures) in SIZES.items():
        verify_all(triton_ops, dtype, batch, drafts, vocabulary, temperatures)
        attend_all(triton_ops, dtype, size)
        mix_all(triton_ops, dtype, 16 * size)
        step_all(dtype, size)
    report = {"found": found.copy(), "early": early.copy(), "kernels": sorted(kernels(jitted()))}
    report["refused"] = fails(lambda: broken[(1,)](torch.empty(32)))
    hasty[(1,)](torch.empty(32), launch_pdl=True)
    print(json.dumps(report | {"noticed": early}))


if __name__ == "__main__":
    main()
