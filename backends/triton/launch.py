"""Dependent launches: a kernel's programs come onto the card while the one before ends, and wait there for its results.

Between two small kernels the card would stand idle for a microsecond otherwise. CUDA calls it programmatic dependent
launch; cards from Hopper on have it. Every kernel that is launched so begins with `wait_for_earlier`, so it reads and
writes nothing before all earlier kernels are done. Not for kernels with many programs that are bound by memory, as the
experts': the programs that wait take places of those that work.
"""

from functools import cache

import torch
import triton
import triton.language as tl

HOPPER = (9, 0)


@cache
def dependent(device: torch.device) -> dict[str, bool]:
    """What a launch on the device is given: DEPENDENT for the kernel, launch_pdl for Triton."""
    able = is_able(device)
    return {"DEPENDENT": able, "launch_pdl": able}


def is_able(device: torch.device) -> bool:
    """Whether the device has dependent launches."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= HOPPER


@triton.jit
def wait_for_earlier(DEPENDENT: tl.constexpr):
    """The first statement of a kernel; afterwards the next one's programs may come."""
    if DEPENDENT:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
