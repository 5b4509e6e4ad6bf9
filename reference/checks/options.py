"""Checks of options that are plain numbers: windows, counts, filters, the acceptance rules' own."""

import math
from collections.abc import Mapping
from numbers import Real
from operator import index
from types import MappingProxyType
from typing import Any

from zigzag.reference.checks.remembered import remembered
from zigzag.reference.errors import ArgumentError, KindError


def as_whole(number: Any) -> int | None:
    """A whole number as a plain int, NumPy's too; None for anything else, for bools as well.

    >>> import numpy as np
    >>> as_whole(np.int64(3)), as_whole(3.0), as_whole(True)
    (3, None, None)
    """
    try:
        return None if isinstance(number, bool) else index(number)
    except TypeError:
        return None


def as_real(number: Any) -> float | None:
    """A real number as a plain float, NumPy's too; None for anything else, for bools as well.

    >>> import numpy as np
    >>> as_real(np.float32(0.5)), as_real(2), as_real("2"), as_real(True)
    (0.5, 2.0, None, None)
    """
    return float(number) if isinstance(number, Real) and not isinstance(number, bool) else None


@remembered
def check_window(op: str, sink: int | None, recent: int | None, align: int) -> tuple[int, int] | None:
    """(sink, recent) with the missing one set to 0, or None where both are None: full attention."""
    block = as_whole(align)
    if block is None or block < 1:
        raise ArgumentError(f"{op}: align must be an integer of at least 1, got {align!r}")
    if sink is None and recent is None:
        return None
    sizes = {}
    for name, given in {"sink": 0 if sink is None else sink, "recent": 0 if recent is None else recent}.items():
        size = as_whole(given)
        if size is None:
            raise KindError(f"{op}: {name} must be an integer number of tokens, got {given!r}")
        if size < 0:
            raise ArgumentError(f"{op}: {name} must not be negative, got {size}")
        if size % block:
            raise ArgumentError(f"{op}: {name} must be a multiple of align={block}, got {size}")
        sizes[name] = size
    if sizes["sink"] + sizes["recent"] == 0:
        raise ArgumentError(f"{op}: sink + recent must be at least 1, got 0 + 0; leave both out for full attention")
    return sizes["sink"], sizes["recent"]


def check_streaming_window(op: str, sink: int | None, recent: int | None, align: int) -> tuple[int, int]:
    """As `check_window`, for ops that compare full attention with streaming and so need a window."""
    window = check_window(op, sink, recent, align)
    if window is None:
        raise ArgumentError(f"{op}: sink and recent are needed, got None for both")
    return window


@remembered
def window_options(
    op: str, sink: int | None, recent: int | None, align: int, *, streaming: bool = False
) -> Mapping[str, int | None]:
    """A window by name, as plain numbers, None for both sizes where there is none; streaming: one is needed."""
    check = check_streaming_window if streaming else check_window
    kept = check(op, sink, recent, align) or (None, None)
    return MappingProxyType({"sink": kept[0], "recent": kept[1], "align": as_whole(align)})


@remembered
def check_scale(op: str, scale: float | None) -> float | None:
    """The factor on the scores as a plain float."""
    factor = as_real(scale)
    if scale is not None and (factor is None or not math.isfinite(factor)):
        raise ArgumentError(f"{op}: scale must be a finite number, or None for D ** -0.5, got {scale!r}")
    return factor


def check_count(op: str, name: str, count: int, least: int = 1) -> int:
    """The count as a plain int."""
    whole = as_whole(count)
    if whole is None or whole < least:
        raise ArgumentError(f"{op}: {name} must be a whole number of at least {least}, got {count!r}")
    return whole


def check_sampling(op: str, temperature: float, top_k: int, top_p: float, min_p: float) -> dict[str, Any]:
    """The parameters of `to_probs` by name, as plain numbers."""
    heat, kept, mass, share = as_real(temperature), as_whole(top_k), as_real(top_p), as_real(min_p)
    if heat is None or not 0 <= heat < math.inf:
        raise ArgumentError(f"{op}: temperature must be a finite number, 0 or more, got {temperature!r}")
    if kept is None or kept < 0:
        raise ArgumentError(f"{op}: top_k must be a whole number, 0 (keep all) or more, got {top_k!r}")
    if mass is None or not 0 < mass <= 1:
        raise ArgumentError(f"{op}: top_p must be in (0, 1], got {top_p!r}")
    if share is None or not 0 <= share <= 1:
        raise ArgumentError(f"{op}: min_p must be in [0, 1], got {min_p!r}")
    return {"temperature": heat, "top_k": kept, "top_p": mass, "min_p": share}


@remembered
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
) -> Mapping[str, Any]:
    """The options of the acceptance rules by name, as plain numbers; who has none of a name leaves it out.

    Of `replacement` any value is one.
    """
    plain: dict[str, Any] = {"replacement": replacement, "temperature": None}
    for name, number in {"epsilon": epsilon, "delta": delta}.items():
        plain[name] = as_real(number)
        if plain[name] is None or not plain[name] >= 0:
            raise ArgumentError(f"{op}: {name} must be 0 or more, got {number!r}")
    plain |= {"top_n": check_count(op, "top_n", top_n), "k": check_count(op, "k", k), "lenience": as_real(lenience)}
    if plain["lenience"] is None or not 0 <= plain["lenience"] <= 1:
        raise ArgumentError(f"{op}: lenience must be in [0, 1], got {lenience!r}")
    if temperature is not None:
        plain |= {"temperature": check_sampling(op, temperature, 0, 1.0, 0.0)["temperature"]}
    return MappingProxyType(plain)
