"""The exact semantics of every op, in NumPy: short, plain, float64 inside.

Also the `numpy` backend. Read `visibility.py` first: it says who sees whom; all else follows from it.
"""

from zigzag.reference.assignment import CRITERIA, assign_heads, assign_layers
from zigzag.reference.attention import attention, gated_attention, merge
from zigzag.reference.scores import gate_gradient, lost_mass, output_deviation
from zigzag.reference.visibility import visible

OPS = (
    "visible",
    "attention",
    "merge",
    "gated_attention",
    "lost_mass",
    "output_deviation",
    "gate_gradient",
    "assign_heads",
    "assign_layers",
)

__all__ = [
    "CRITERIA",
    "OPS",
    "assign_heads",
    "assign_layers",
    "attention",
    "gate_gradient",
    "gated_attention",
    "lost_mass",
    "merge",
    "output_deviation",
    "visible",
]
