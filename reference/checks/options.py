"""Checks of options that are plain numbers: windows, counts, filters, the acceptance rules' own."""

import numpy as np

from zigzag.reference.errors import ArgumentError, KindError


def check_window(op: str, sink: int | None, recent: int | None, align: int) -> tuple[int, int] | None:
    """(sink, recent) with the missing one set to 0, or None where both are None: full attention."""
    if isinstance(align, bool) or not isinstance(align, int) or align < 1:
        raise ArgumentError(f"{op}: align must be an integer of at least 1, got {align!r}")
    if sink is None and recent is None:
        return None
    sizes = {"sink": 0 if sink is None else sink, "recent": 0 if recent is None else recent}
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int):
            raise KindError(f"{op}: {name} must be an integer number of tokens, got {size!r}")
        if size < 0:
            raise ArgumentError(f"{op}: {name} must not be negative, got {size}")
        if size % align:
            raise ArgumentError(f"{op}: {name} must be a multiple of align={align}, got {size}")
    if sizes["sink"] + sizes["recent"] == 0:
        raise ArgumentError(f"{op}: sink + recent must be at least 1, got 0 + 0; leave both out for full attention")
    return sizes["sink"], sizes["recent"]


def check_streaming_window(op: str, sink: int, recent: int, align: int) -> tuple[int, int]:
    """As `check_window`, for ops that compare full attention with streaming and so need a window."""
    window = check_window(op, sink, recent, align)
    if window is None:
        raise ArgumentError(f"{op}: sink and recent are needed, got None for both")
    return window


def check_count(op: str, name: str, count: int) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ArgumentError(f"{op}: {name} must be a whole number of at least 1, got {count!r}")


def check_sampling(op: str, temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    """The parameters of `to_probs`."""
    if not (temperature >= 0 and np.isfinite(temperature)):
        raise ArgumentError(f"{op}: temperature must be a finite number, 0 or more, got {temperature}")
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 0:
        raise ArgumentError(f"{op}: top_k must be a whole number, 0 (keep all) or more, got {top_k!r}")
    if not 0 < top_p <= 1:
        raise ArgumentError(f"{op}: top_p must be in (0, 1], got {top_p}")
    if not 0 <= min_p <= 1:
        raise ArgumentError(f"{op}: min_p must be in [0, 1], got {min_p}")


def check_rule_options(
    op: str,
    *,
    epsilon: float = 0,
    delta: float = 0,
    top_n: int = 1,
    k: int = 1,
    lenience: float = 1,
    replacement: bool = True,
    temperature: float | None = None,
) -> None:
    """The options of the acceptance rules; who has none of a name leaves it out. Of `replacement` any value is one."""
    for name, number in {"epsilon": epsilon, "delta": delta}.items():
        if not number >= 0:
            raise ArgumentError(f"{op}: {name} must be 0 or more, got {number}")
    check_count(op, "top_n", top_n)
    check_count(op, "k", k)
    if not 0 <= lenience <= 1:
        raise ArgumentError(f"{op}: lenience must be in [0, 1], got {lenience}")
    if temperature is not None:
        check_sampling(op, temperature, 0, 1.0, 0.0)
