"""Ops of zigzag in JAX, jitted, in 64 bits: NumPy arrays in and out.

A function here has the name and the arguments of its op in `zigzag.reference`; ops that are missing are not supported.
"""

import jax

from zigzag_jax.attention import attention, merge
from zigzag_jax.head_scores import gate_gradient, lost_mass, output_deviation
from zigzag_jax.sampling import sample, to_probs
from zigzag_jax.verification import verify_block, verify_residual
from zigzag_jax.visibility import visible

jax.config.update("jax_enable_x64", True)  # else float64 becomes float32 without a word

ARRAY_KINDS = ("numpy",)  # packages whose arrays the functions take
DTYPES = ("float64", "float32")
DEVICE = "cpu"  # where they run, for `zigzag info`: arrays of NumPy would be copied to another device in each call

__all__ = [
    "ARRAY_KINDS",
    "DEVICE",
    "DTYPES",
    "attention",
    "gate_gradient",
    "lost_mass",
    "merge",
    "output_deviation",
    "sample",
    "to_probs",
    "verify_block",
    "verify_residual",
    "visible",
]
