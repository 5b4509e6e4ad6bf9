"""A backend of your own: one op, registered, tested against the reference by the tests of the built-in backends.

    python examples/own_backend.py

runs `zigzag conform` on it, and on one with a fault.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np

import zigzag


class Mine:
    """`merge` in float32 and float64; an op that is not here is not supported, nothing else is needed."""

    ARRAY_KINDS = ("numpy",)  # packages whose arrays it takes
    DEVICE = "cpu"  # shown by `zigzag info`

    @staticmethod
    def merge(outputs, lses):
        """Joins partial attention results: outputs [P, B, H, Tq, Dv], lses [P, B, H, Tq]; docs/notation.md."""
        most = lses.max(axis=0)
        weights = np.exp(lses - np.where(np.isfinite(most), most, 0))  # a row that sees nothing has lse -inf
        total = weights.sum(axis=0)
        output = (weights[..., None] * outputs).sum(axis=0) / np.maximum(total, 1e-30)[..., None]
        with np.errstate(divide="ignore"):
            return output.astype(outputs.dtype), (np.log(total) + most).astype(lses.dtype)


class Faulty(Mine):
    """The plain mean of the parts: right only where all of them saw the same."""

    @staticmethod
    def merge(outputs, lses):
        return outputs.mean(axis=0), Mine.merge(outputs, lses)[1]


# On import: `--load own_backend` imports this file. An installed package uses the entry points `zigzag.backends`.
zigzag.register_backend("mine", Mine())
zigzag.register_backend("faulty", Faulty())


def conform(name: str) -> int:
    """Exit code of the property tests: 0 if some ran and all passed."""
    command = [sys.executable, "-m", "zigzag", "conform", name, "--load", Path(__file__).stem, "--only", "merge"]
    return subprocess.run(command, cwd=Path(__file__).parent).returncode


def main() -> None:
    outputs, lses = np.array([[[[[1.0]]]], [[[[4.0]]]]]), np.log([[[[1.0]]], [[[2.0]]]])
    print("merged:", zigzag.ops.merge(outputs, lses, backend="mine")[0].item(), flush=True)  # (1 * 1 + 2 * 4) / 3
    codes = {name: conform(name) for name in ("mine", "faulty")}
    print("exit codes:", codes)


if __name__ == "__main__":
    main()
