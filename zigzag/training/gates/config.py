"""What the training of gates is, checked when it is made."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from zigzag.plans.window import Window
from zigzag.reference.errors import ArgumentError
from zigzag.training.settings import check_counts, check_numbers

OP = "calibrate"
HEADS, LAYERS = "trained_gates", "trained_layer_gates"
METHODS = (HEADS, LAYERS)


@dataclass(frozen=True, kw_only=True)
class GateTraining:
    """Settings as DuoAttention published them (arXiv 2410.10819, its code), each of them an option.

    method: "trained_gates", a gate for each KV head under an L1 penalty, or "trained_layer_gates", a gate for each
        layer under a budget
    sink, recent, align: the window of the streaming heads to be
    num_full: for trained_layer_gates: so many layers are full in the end
    steps, learning_rate: of AdamW; warmup: share of the steps in which the rate rises from a tenth of it to all, and at
        the end falls back
    reg: weight of the mean of the gates beside the distance, for trained_gates
    shortest, longest: tokens of a row, None: 1,000 (or what the needles need), and 32,000 (or the model's context);
        lengths: so many rows, spread evenly between them, learned from again and again
    passkeys, words: needles of a row, and words of each
    seed: of needles, their places and the order of the rows
    """

    method: str = HEADS
    sink: int = 128
    recent: int = 256
    align: int = 1
    num_full: int | None = None
    steps: int = 2000
    learning_rate: float = 0.02
    warmup: float = 0.2
    reg: float = 0.05
    shortest: int | None = None
    longest: int | None = None
    lengths: int = 50
    passkeys: int = 10
    words: int = 32
    seed: int = 42
    log_every: int = 50
    save_every: int = 200

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ArgumentError(f"{OP}: method must be one of {', '.join(METHODS)}, got {self.method!r}")
        Window(self.sink, self.recent, self.align)
        given = [name for name in ("shortest", "longest") if getattr(self, name) is not None]
        check_counts(OP, self, "steps", "lengths", "passkeys", "words", "log_every", "save_every", *given)
        if self.num_full is not None:
            check_counts(OP, self, "num_full", least=0)
        if (self.num_full is None) == (self.method == LAYERS):
            what = "needs num_full, the layers that stay full" if self.method == LAYERS else "knows no num_full"
            raise ArgumentError(f"{OP}: {self.method} {what}")
        check_numbers(OP, self, learning_rate=math.inf, reg=math.inf, warmup=0.5)
        if not self.learning_rate > 0:
            raise ArgumentError(f"{OP}: learning_rate must be above 0")

    @property
    def window(self) -> Window:
        return Window(self.sink, self.recent, self.align)

    def rate(self, step: int) -> float:
        """Up from a tenth over the first of the steps, down to a tenth over the last.

        >>> config = GateTraining(steps=2000, learning_rate=1.0)
        >>> config.rate(0), config.rate(199), config.rate(1000), config.rate(1999)
        (0.1, 0.5, 1.0, 0.1)
        """
        edge = max(1.0, self.warmup * self.steps)
        return self.learning_rate * min(1.0, max((step + 1) / edge, 0.1), max((self.steps - step) / edge, 0.1))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
