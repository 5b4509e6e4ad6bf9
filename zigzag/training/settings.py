"""Checks that the settings of training runs share."""

from typing import Any

from zigzag.reference.checks import as_real, as_whole
from zigzag.reference.errors import ArgumentError


def check_counts(op: str, settings: Any, *names: str, least: int = 1) -> None:
    """ArgumentError unless these fields are whole numbers, `least` or more."""
    for name in names:
        if (number := as_whole(getattr(settings, name))) is None or number < least:
            raise ArgumentError(f"{op}: {name} must be {least} or more, got {getattr(settings, name)!r}")


def check_numbers(op: str, settings: Any, **most: float) -> None:
    """ArgumentError unless these fields are numbers from 0 to the most that each may be."""
    for name, bound in most.items():
        if (value := as_real(getattr(settings, name))) is None or not 0 <= value <= bound:
            raise ArgumentError(f"{op}: {name} must be 0 to {bound:g}, got {getattr(settings, name)!r}")
