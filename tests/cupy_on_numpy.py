"""The CuPy backend's array code on NumPy arrays, as a backend of its own: the parity suite runs it without a GPU."""

from functools import wraps
from types import SimpleNamespace

import numpy as np

from zigzag import reference
from zigzag.backends import cupy as cupy_ops
from zigzag.backends import register_backend

NAME = "cupy-on-numpy"


def _quiet(op):
    """CuPy never warns of 0/0 or infinities, whose meaning the ops define; NumPy would."""

    @wraps(op)
    def quiet(*args, **options):
        with np.errstate(all="ignore"):
            return op(*args, **options)

    return quiet


def register() -> None:
    having = [op for op in reference.OPS if hasattr(cupy_ops, op)]
    ops = {op: _quiet(getattr(cupy_ops, op)) for op in having}
    register_backend(NAME, SimpleNamespace(ARRAY_KINDS=("numpy",), DEVICE="cpu, in place of a GPU", **ops))
