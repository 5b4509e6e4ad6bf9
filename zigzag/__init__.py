"""zigzag: layer-exclusive retrieval and streaming attention, exact, fast and checkable.

Importing this package needs NumPy only; what needs torch or transformers is imported when asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from zigzag import ops, reference
from zigzag.backends import list_backends, register_backend, unregister_backend, use_backend
from zigzag.plans.heads import HeadPlan, load_duo_head_plan, make_head_plan
from zigzag.plans.layers import LayerPlan, head_map, make_plan
from zigzag.plans.own_windows import make_window_plan, window_report
from zigzag.plans.scores import HeadScores
from zigzag.plans.window import Window
from zigzag.reference.errors import (
    ArgumentError,
    BackendError,
    CacheError,
    KindError,
    ModelError,
    OutOfMemoryError,
    PlanError,
    ProcessError,
    ZigzagError,
)
from zigzag.version import __version__

if TYPE_CHECKING:
    from zigzag.generation.generate import generate
    from zigzag.measuring.calibration import calibrate
    from zigzag.measuring.refinement import every_plan, refine_plan
    from zigzag.measuring.windows import calibrate_windows
    from zigzag.models.draft_heads.files import load_head
    from zigzag.models.glm import load
    from zigzag.models.load import load_model
    from zigzag.running.attach import attach, cache_bytes, detach
    from zigzag.running.fused_experts import fused_experts
    from zigzag.training.gates.train import train_gates
    from zigzag.training.recovery.train import recover

_LAZY = {
    "attach": "zigzag.running.attach",
    "cache_bytes": "zigzag.running.attach",
    "calibrate": "zigzag.measuring.calibration",
    "calibrate_windows": "zigzag.measuring.windows",
    "detach": "zigzag.running.attach",
    "fused_experts": "zigzag.running.fused_experts",
    "generate": "zigzag.generation.generate",
    "load": "zigzag.models.glm",
    "load_head": "zigzag.models.draft_heads.files",
    "load_model": "zigzag.models.load",
    "every_plan": "zigzag.measuring.refinement",
    "recover": "zigzag.training.recovery.train",
    "refine_plan": "zigzag.measuring.refinement",
    "train_gates": "zigzag.training.gates.train",
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
    "OutOfMemoryError",
    "PlanError",
    "ProcessError",
    "Window",
    "ZigzagError",
    "__version__",
    "attach",
    "cache_bytes",
    "calibrate",
    "calibrate_windows",
    "detach",
    "every_plan",
    "fused_experts",
    "generate",
    "head_map",
    "list_backends",
    "load",
    "load_duo_head_plan",
    "load_head",
    "load_model",
    "make_head_plan",
    "make_plan",
    "make_window_plan",
    "ops",
    "recover",
    "reference",
    "refine_plan",
    "register_backend",
    "train_gates",
    "unregister_backend",
    "use_backend",
    "window_report",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'zigzag' has no attribute {name!r}")
