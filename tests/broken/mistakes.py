"""What a broken backend is: one op of the reference, with one mistake."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from zigzag import reference
from zigzag.reference import OPS

DTYPES = ("float64", "float32", "float16")  # float16 shows what is computed too narrowly
Op = Callable[..., Any]


@dataclass(frozen=True)
class Mistake:
    """name: what is wrong, in a few words; make: the wrong function, a new one each time: some keep what they saw;
    module: where it is written."""

    op: str
    name: str
    make: Callable[[], Op]
    module: str = ""


class Mistakes(list[Mistake]):
    """Those of a module."""

    def __init__(self, module: str) -> None:
        super().__init__()
        self.module = module.rpartition(".")[2]

    def add(self, op: str, name: str, function: Op) -> None:
        self.append(Mistake(op, name, lambda: function, self.module))

    def of(self, op: str, name: str) -> Callable[[Op], Op]:
        """Of the function below."""

        def keep(function: Op) -> Op:
            self.add(op, name, function)
            return function

        return keep

    def made(self, op: str, name: str) -> Callable[[Callable[[], Op]], Callable[[], Op]]:
        """Of what the function below makes."""

        def keep(make: Callable[[], Op]) -> Callable[[], Op]:
            self.append(Mistake(op, name, make, self.module))
            return make

        return keep


def apply_experts(hidden: Any, expert_ids: Any, weights: Any, gate_up: Any, down: Any) -> Any:
    """The reference looks at ids always; a backend leaves that to the front door, and takes all others for none."""
    inside = (expert_ids >= 0) & (expert_ids < len(down))
    return reference.apply_experts(hidden, np.where(inside, expert_ids, -1), weights, gate_up, down)


def right(op: str) -> Op:
    return apply_experts if op == "apply_experts" else getattr(reference, op)


def backend_of(op: str, function: Op) -> SimpleNamespace:
    """All other ops are right, as some tests compare two."""
    functions = {name: right(name) for name in OPS} | {op: function}
    return SimpleNamespace(ARRAY_KINDS=("numpy",), DTYPES=DTYPES, **functions)
