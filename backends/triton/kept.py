"""Launches whose kernel is kept, which costs the host far less than to look for it.

Triton looks at every argument of every launch to find the kernel that it compiled for such ones, which takes longer
than the launch itself. A `Launch` holds all arguments but the arrays, so what is left to look at is where these lie:
Triton's own launch finds, or compiles, the kernel for a first call; later calls with the same key go to it directly.

The key: the current device, and of each array whether it begins at a multiple of 16 bytes. All else that Triton
specialises on (dtypes, numbers, constants, options) is the Launch's own and never changes. Nothing is kept that could
differ from Triton's launch: in the interpreter, with a version of Triton whose code was not read for this, for arrays
that are not all on the current device; and while somebody listens to launches, or debugs them, Triton launches all.
"""

from collections.abc import Callable
from functools import lru_cache, reduce
from operator import or_
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.jit import JITFunction

knobs: Any = getattr(triton, "knobs", None)  # older versions have none
# Versions of Triton in which `JITFunction.run` ends with the call that `Launch` makes. 3.8 ends as 3.9 does: the same
# words in `run`, `compute_cache_key` but for where a helper stands, `CompiledKernel.run`, and the same C function that
# takes pointers as numbers; its launcher differs in GSan alone, an instrumentation, under which Triton launches all.
READ = ("3.6.", "3.8.", "3.9.")
ALIGNMENT = 16  # bytes
MOST = 1024  # plans and launches that are kept of a kind

Key = tuple[int, tuple[bool, ...]]  # current device, which arrays are aligned; (): all


class Ready(NamedTuple):
    """A compiled kernel as its C launcher is called, and what follows the arrays.

    kernel: held, since from 3.8 on Triton unloads the function of one that nobody holds
    """

    run: Callable[..., None]
    function: int
    metadata: Any
    rest: tuple[Any, ...]
    kernel: CompiledKernel


class Launch:
    """A kernel with its grid and all its arguments but the arrays, which come first.

    Calls must give arrays of the same dtypes on the same devices: they are not looked at again. None stands for an
    array that the kernel does not read, in every call of a launch or in none; the first array is never None.
    """

    def __init__(self, kernel: Any, grid: tuple[int, ...], numbers: tuple[int | float, ...], **options: Any) -> None:
        self.kernel, self.numbers, self.options = kernel, numbers, options
        self.grid = (*grid, 1, 1)[:3]
        self._is_kept = isinstance(kernel, JITFunction) and triton.__version__.startswith(READ)
        self._ready: dict[Key, Ready] = {}

    def __call__(self, *arrays: Tensor | None) -> None:
        if not self._is_kept or _is_watched(self.kernel):
            self._by_triton(arrays)
            return
        places = [0 if array is None else array.data_ptr() for array in arrays]
        device = driver.active.get_current_device()
        misplaced = reduce(or_, places) % ALIGNMENT
        key = device, tuple([place % ALIGNMENT == 0 for place in places]) if misplaced else ()
        ready = self._ready.get(key)
        if ready is None:
            compiled = self._by_triton(arrays)
            here = all(array is None or _index(array.device) == device for array in arrays)
            if here and isinstance(compiled, CompiledKernel):
                self._ready[key] = self._kept(compiled, len(arrays))
            return
        stream = driver.active.get_current_stream(device)
        # No metadata of the launch and no hooks; pointers as numbers, since it is known that the card can read there.
        ready.run(*self.grid, stream, ready.function, ready.metadata, None, None, None, *places, *ready.rest)

    def _by_triton(self, arrays: tuple[Tensor | None, ...]) -> Any:
        """What Triton's own launch gives; it wants something to point at for what is not read."""
        given = [arrays[0] if array is None else array for array in arrays]
        return self.kernel[self.grid](*given, *self.numbers, **self.options)

    def _kept(self, compiled: Any, arrays: int) -> Ready:
        constants = self.kernel.arg_names[arrays + len(self.numbers) :]
        rest = (*self.numbers, *(self.options[name] for name in constants))
        return Ready(compiled.run, compiled.function, compiled.packed_metadata, rest, compiled)


def _is_watched(kernel: Any) -> bool:
    """Whether a launch is more than a launch: somebody listens, or kernels are compiled to be debugged."""
    now = knobs.runtime
    return bool(
        not _is_silent(now.launch_enter_hook)
        or not _is_silent(now.launch_exit_hook)
        or now.debug
        or now.add_stages_inspection_hook is not None
        or knobs.compilation.instrumentation_mode
        or kernel.pre_run_hooks
    )


def _is_silent(hook: Any) -> bool:
    """None, or a chain with no hooks in it."""
    return hook is None or getattr(hook, "calls", hook) == []


def _index(device: torch.device) -> int | None:
    """Which CUDA device it is; None for others."""
    return device.index if device.type == "cuda" else None


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    arrays: tuple[Tensor | None, ...],
    numbers: tuple[int | float, ...],
    **options: Any,
) -> None:
    """`kernel[grid](*arrays, *numbers, **options)`, kept; for ops of several launches, which have no plan."""
    kinds = tuple([None if array is None else (array.dtype, array.device) for array in arrays])
    _launch_of(kernel, grid, kinds, numbers, tuple([type(n) for n in numbers]), tuple(options.items()))(*arrays)


@lru_cache(MOST)
def _launch_of(
    kernel: Any,
    grid: tuple[int, ...],
    kinds: tuple[tuple[torch.dtype, torch.device] | None, ...],
    numbers: tuple[int | float, ...],
    types: tuple[type, ...],
    options: tuple[tuple[str, Any], ...],
) -> Launch:
    """kinds, types: only there to tell launches apart, 1 from 1.0 too."""
    return Launch(kernel, grid, numbers, **dict(options))
