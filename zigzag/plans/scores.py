"""Head scores: how much each KV head needs its full cache, as `calibrate` measures it or others publish it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zigzag.files.json_files import write_json
from zigzag.plans.stored import read_json, take
from zigzag.plans.window import Window
from zigzag.reference.errors import PlanError

FORMAT = "zigzag-head-scores"


@dataclass(frozen=True, eq=False)
class HeadScores:
    """How much each KV head needs its full cache: larger means more.

    values: [L, G] finite, kept as read-only float64.
    method: how they were measured, such as "gate_gradient" or "duo_attention".
    sink, recent: the streaming window that they were measured for.
    model: name of the model; details: anything else worth keeping, JSON types only.

    Raises PlanError for values that are not [L, G] or not finite.
    """

    values: NDArray[np.float64]
    method: str
    sink: int
    recent: int
    model: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        values = np.array(self.values, dtype=np.float64)
        if values.ndim != 2 or values.size == 0:
            raise PlanError(f"HeadScores: values must have shape [L, G] with L, G >= 1, got {list(values.shape)}")
        if not np.isfinite(values).all():
            raise PlanError(f"HeadScores: values must be finite, got {(~np.isfinite(values)).sum()} that are not")
        window = Window(self.sink, self.recent)
        object.__setattr__(self, "sink", window.sink)
        object.__setattr__(self, "recent", window.recent)
        values.setflags(write=False)
        object.__setattr__(self, "values", values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HeadScores) and self.content() == other.content()

    def __hash__(self) -> int:
        return hash((self.method, self.sink, self.recent, self.values.tobytes()))

    @property
    def num_layers(self) -> int:
        """L"""
        return int(self.values.shape[0])

    @property
    def num_kv_heads(self) -> int:
        """G"""
        return int(self.values.shape[1])

    def save(self, path: str | Path) -> None:
        """Write as JSON, whole or not at all."""
        write_json(path, {"format": FORMAT, "version": 1, **self.content()})

    @classmethod
    def load(cls, path: str | Path) -> "HeadScores":
        """Read what `save` wrote; PlanError if the file is damaged or something else."""
        return cls.from_content(read_json(path, FORMAT), path)

    def content(self) -> dict[str, Any]:
        """What a file holds, in JSON types."""
        return {
            "method": self.method,
            "sink": self.sink,
            "recent": self.recent,
            "model": self.model,
            "details": self.details,
            "values": self.values.tolist(),
        }

    @classmethod
    def from_content(cls, content: dict[str, Any], path: str | Path) -> "HeadScores":
        """The scores of which `content` gave this; PlanError, naming `path`, if it is damaged."""
        rows = take(content, "values", list, path)
        try:
            values = np.array(rows, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise PlanError(f"{path}: 'values' must be equally long rows of numbers; the file is damaged") from error
        return cls(
            values,
            take(content, "method", str, path),
            take(content, "sink", int, path),
            take(content, "recent", int, path),
            take(content, "model", (str, type(None)), path),
            take(content, "details", dict, path),
        )
