"""What a recovery is, checked when it is made."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from zigzag.measuring.prompts import PEOPLE
from zigzag.reference.errors import ArgumentError
from zigzag.training.schedule import warmed_cosine
from zigzag.training.settings import check_counts, check_numbers

RATES = {"lora": 1e-3, "norms+projections": 1e-4, "all": 2e-5}  # at their peak
LAYERS = ("streaming", "all")
RANK = 16


@dataclass(frozen=True, kw_only=True)
class RecoveryTraining:
    """Two equal ones over the same model, plan and text, on the same device, make the same weights.

    learn: "lora", an adapter on the projections of attention; "norms+projections", all norms and those projections
        themselves; "all", every weight
    layers: whose projections learn, those that the plan makes "streaming", or "all" with attention that the plan
        speaks of; for learn="all" it has no meaning
    rank, alpha: of the adapter, None: 16 and twice the rank; for the others they must be None
    steps, rows, length: rows of so many tokens in a step
    retrieval: share of the rows that hide codes and ask for them; the others are texts
    needles: codes hidden in every second of these rows, the others are passkey prompts
    own: share of the text's tokens that the model itself writes; tokens: of the text in all
    states: weight of the squared distance of the final states (DuoAttention's loss) beside KL(before, now)
    learning_rate: at its peak, None: by what learns; warmup: share of the steps
    checkpointing: compute layers again for their gradients: less memory, a third more time
    judged: held-out passkey prompts by which it is judged, of `length` tokens
    """

    learn: str = "lora"
    layers: str = "streaming"
    rank: int | None = None
    alpha: int | None = None
    steps: int = 500
    rows: int = 4
    length: int = 1024
    retrieval: float = 0.5
    needles: int = 4
    own: float = 0.5
    tokens: int = 200_000
    states: float = 0.0
    learning_rate: float | None = None
    warmup: float = 0.05
    weight_decay: float = 0.0
    clip: float = 1.0
    checkpointing: bool = False
    judged: int = 8
    seed: int = 0
    log_every: int = 25
    save_every: int = 100

    def __post_init__(self) -> None:
        if self.learn not in RATES:
            raise ArgumentError(f"recover: learn must be one of {', '.join(RATES)}, got {self.learn!r}")
        if self.layers not in LAYERS:
            raise ArgumentError(f"recover: layers must be streaming or all, got {self.layers!r}")
        counts = ("steps", "rows", "length", "needles", "tokens", "judged", "log_every", "save_every")
        check_counts("recover", self, *counts)
        check_numbers("recover", self, retrieval=1, own=1, warmup=1, states=math.inf, weight_decay=math.inf)
        if not self.peak > 0 or not self.clip > 0:
            raise ArgumentError("recover: learning_rate and clip must be above 0")
        if self.needles > len(PEOPLE):
            raise ArgumentError(f"recover: needles must be at most {len(PEOPLE)}, got {self.needles}")
        self._check_adapter()

    def _check_adapter(self) -> None:
        if self.learn != "lora" and (self.rank, self.alpha) != (None, None):
            raise ArgumentError(f"recover: rank and alpha are of learn='lora', leave them out for {self.learn!r}")
        if self.learn == "all" and self.layers != LAYERS[0]:
            raise ArgumentError("recover: layers says whose projections learn, leave it out for learn='all'")
        check_counts("recover", self, *[name for name in ("rank", "alpha") if getattr(self, name) is not None])

    @property
    def lora_rank(self) -> int:
        return RANK if self.rank is None else self.rank

    @property
    def lora_alpha(self) -> int:
        return 2 * self.lora_rank if self.alpha is None else self.alpha

    @property
    def peak(self) -> float:
        return RATES[self.learn] if self.learning_rate is None else self.learning_rate

    def rate(self, step: int) -> float:
        """Up linearly, then down along a cosine to a tenth."""
        return self.peak * warmed_cosine(step, self.steps, self.warmup)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
