"""zigzag: layer-exclusive retrieval and streaming attention, exact, fast and checkable.

Importing this package needs NumPy only; what needs torch or transformers is imported when asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from zigzag import ops, reference
from zigzag.backends import list_backends, register_backend, unregister_backend, use_backend
from zigzag.head_plans import HeadPlan, load_duo_head_plan, make_head_plan
from zigzag.plans import HeadScores, LayerPlan, head_plan, make_plan
from zigzag.reference.errors import (
    ArgumentError,
    BackendError,
    CacheError,
    KindError,
    ModelError,
    PlanError,
    ZigzagError,
)

if TYPE_CHECKING:
    from zigzag.calibration import calibrate
    from zigzag.experts import few_token_experts
    from zigzag.generation import generate
    from zigzag.glm import load
    from zigzag.models import load_model
    from zigzag.refinement import refine_plan
    from zigzag.running import attach, cache_bytes, detach

__version__ = "0.1.0"

_LAZY = {
    "attach": "zigzag.running",
    "cache_bytes": "zigzag.running",
    "calibrate": "zigzag.calibration",
    "detach": "zigzag.running",
    "few_token_experts": "zigzag.experts",
    "generate": "zigzag.generation",
    "load": "zigzag.glm",
    "load_model": "zigzag.models",
    "refine_plan": "zigzag.refinement",
}

__all__ = [
    "ArgumentError",
    "BackendError",
    "CacheError",
    "HeadPlan",
    "HeadScores",
    "KindError",
    "LayerPlan",
    "ModelError",
    "PlanError",
    "ZigzagError",
    "attach",
    "cache_bytes",
    "calibrate",
    "detach",
    "few_token_experts",
    "generate",
    "head_plan",
    "list_backends",
    "load",
    "load_duo_head_plan",
    "load_model",
    "make_head_plan",
    "make_plan",
    "ops",
    "reference",
    "refine_plan",
    "register_backend",
    "unregister_backend",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'zigzag' has no attribute {name!r}")
