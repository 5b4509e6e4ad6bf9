"""What `--additional-config` says of zigzag, and the plan that it names."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from zigzag.plans.layers import LayerPlan
from zigzag.reference.errors import ArgumentError

KEY = "zigzag"


def plan_of(additional_config: Any) -> LayerPlan | None:
    """The plan of a vLLM configuration; None where it names none.

    Raises ArgumentError for options that are not understood, PlanError for a file that holds no layer plan.
    """
    if not isinstance(additional_config, dict) or KEY not in additional_config:
        return None
    options = additional_config[KEY]
    if not isinstance(options, dict) or options.keys() != {"plan"} or not isinstance(options["plan"], str):
        raise ArgumentError(
            f'additional_config: {KEY!r} must be {{"plan": "FILE"}}, a file that zigzag plan wrote; got {options!r}'
        )
    path = Path(options["plan"])
    return _read(path, path.stat().st_mtime_ns if path.exists() else 0)


def served_plan(additional_config: Any) -> LayerPlan:
    """The plan of a layer that streams, so there is one."""
    plan = plan_of(additional_config)
    if plan is None:
        raise ArgumentError("zigzag: a layer was to stream, and the configuration names no plan: make both anew")
    return plan


@lru_cache(4)
def _read(path: Path, changed: int) -> LayerPlan:
    """Every layer of a model asks for it."""
    return LayerPlan.load(path)
