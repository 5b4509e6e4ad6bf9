"""What the training of a draft head is, checked when it is made."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from zigzag.models.draft_heads.kinds import KINDS
from zigzag.reference.errors import ArgumentError
from zigzag.training.schedule import warmed_cosine
from zigzag.training.settings import check_counts, check_numbers

DIVERGENCES = ("forward", "reverse")
RATES = {"pass": 3e-3, "exit": 5e-4, "student": 5e-4}  # at their peak; of other kinds `RATE`
RATE = 1e-3


@dataclass(frozen=True, kw_only=True)
class HeadTraining:
    """Two equal ones over the same model and text, on the same device, make the same head.

    kind, sizes: as of `make_head`; sizes: those that are not the kind's own
    steps, rows, length: rows of so many tokens in a step
    learning_rate: at its peak, None: the kind's own; warmup: share of the steps
    own: share of the tokens to learn from that the model itself writes, the rest are texts; tokens: of both together
    depth: how many tokens in a row `eagle` learns to draft on its own states; decay: weight of each beside the one
        before, of the other kinds too
    divergence: "forward", KL(target, draft), or "reverse", KL(draft, target), as DistillSpec has both
    """

    kind: str
    sizes: dict[str, int] = field(default_factory=dict)
    steps: int = 1000
    rows: int = 16
    length: int = 512
    tokens: int = 2_000_000
    own: float = 0.5
    learning_rate: float | None = None
    warmup: float = 0.05
    weight_decay: float = 0.0
    clip: float = 1.0
    depth: int = 3
    decay: float = 0.8
    divergence: str = "forward"
    seed: int = 0
    log_every: int = 50
    save_every: int = 500

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ArgumentError(f"train-drafter: kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.divergence not in DIVERGENCES:
            raise ArgumentError(f"train-drafter: divergence must be forward or reverse, got {self.divergence!r}")
        counts = ("steps", "rows", "length", "tokens", "depth", "log_every", "save_every")
        check_counts("train-drafter", self, *counts)
        check_numbers("train-drafter", self, own=1, warmup=1, weight_decay=math.inf, decay=1)
        if not self.peak > 0 or not self.clip > 0:
            raise ArgumentError("train-drafter: learning_rate and clip must be above 0")

    @property
    def peak(self) -> float:
        return RATES.get(self.kind, RATE) if self.learning_rate is None else self.learning_rate

    def rate(self, step: int) -> float:
        """Up linearly, then down along a cosine to a tenth."""
        return self.peak * warmed_cosine(step, self.steps, self.warmup)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
