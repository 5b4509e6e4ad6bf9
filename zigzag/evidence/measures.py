"""What a suite asks of a model under a plan, one cell a task and length: prompts answered, texts foretold, sums."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from zigzag.evidence.sums import solved
from zigzag.measuring.answers import answer
from zigzag.measuring.corpus import read_corpus
from zigzag.measuring.perplexity import Rows, file_rows, losses_by_position
from zigzag.measuring.prompts import Prompt
from zigzag.measuring.sums import Sum, draw_sum
from zigzag.measuring.tasks import TASKS
from zigzag.models.decoder import CausalLM
from zigzag.plans.heads import Plan
from zigzag.reference.errors import ArgumentError
from zigzag.running.masking import masked_heads
from zigzag.running.model_layers import layers_of

Cell = dict[str, Any]  # of each prompt: right (0 or 1), losses (nats); of texts losses are [rows][bins]

TEXT_BYTES = 8_000_000
BINS = 8
OPERANDS = 4  # what tiny-glm learnt


class Measure(Protocol):
    """A suite's work. `tasks` and `lengths` name its cells."""

    @property
    def tasks(self) -> Sequence[str]: ...

    @property
    def lengths(self) -> Sequence[int]: ...

    def conditions(self) -> dict[str, Any]:
        """What cells of one file must have in common."""

    def about(self) -> dict[str, dict[str, Any]]:
        """Of each task: what, chance, and its numbers."""

    def prepare(self, tokenizer: Any) -> None:
        """Make all that is asked, so that what cannot be made is known before work begins."""

    def cell(self, model: CausalLM, tokenizer: Any, plan: Plan, task: str, length: int) -> Cell:
        """One cell."""

    def context(self, length: int) -> int:
        """Tokens for which the bytes of the cache are told."""


@dataclass
class TaskMeasure:
    """Synthetic tasks, by teacher forcing on the answer.

    prompts: of each task and length; seed: of the first; tokens: of one forward
    """

    tasks: Sequence[str]
    lengths: Sequence[int]
    prompts: int
    seed: int
    tokens: int
    min_distance: int
    made: dict[tuple[str, int], Sequence[Prompt]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := [name for name in self.tasks if name not in TASKS]:
            raise ArgumentError(f"evidence: tasks must be of {', '.join(TASKS)}, got {unknown[0]!r}")

    def conditions(self) -> dict[str, Any]:
        return {"prompts": self.prompts, "seed": self.seed, "min_distance": self.min_distance}

    def about(self) -> dict[str, dict[str, Any]]:
        return {
            name: {"what": TASKS[name].what, "chance": TASKS[name].chance, **_fields(TASKS[name])}
            for name in self.tasks
        }

    def prepare(self, tokenizer: Any) -> None:
        for task in self.tasks:
            for length in self.lengths:
                seed = self.seed + 100 * length  # as `measure.evaluation_prompts`
                how = {"count": self.prompts, "seed": seed, "min_distance": self.min_distance}
                self.made[task, length] = TASKS[task].prompts(tokenizer, length, **how)

    def cell(self, model: CausalLM, tokenizer: Any, plan: Plan, task: str, length: int) -> Cell:
        with _masked(model, plan):
            found = answer(model, self.made[task, length], batch_size=max(1, self.tokens // length))
        return {"right": [int(r) for r in found.right], "losses": [round(x, 6) for x in found.losses]}

    def context(self, length: int) -> int:
        return length


@dataclass
class TextMeasure:
    """Held-out sources and documentation of Python, in long rows.

    prompts: rows of each length; tokens: of one forward
    """

    lengths: Sequence[int]
    prompts: int
    tokens: int
    tasks: Sequence[str] = ("text",)
    made: dict[int, Rows] = field(default_factory=dict)
    fingerprint: str = ""

    def conditions(self) -> dict[str, Any]:
        return {"rows": self.prompts, "bins": BINS, "corpus": read_corpus(TEXT_BYTES).fingerprint}

    def about(self) -> dict[str, dict[str, Any]]:
        what = f"loss a token on held-out Python sources and documentation, in {BINS} parts of the row"
        return {"text": {"what": what, "chance": None}}

    def prepare(self, tokenizer: Any) -> None:
        texts = read_corpus(TEXT_BYTES).held_out
        self.made = {length: file_rows(tokenizer, texts, length, self.prompts) for length in self.lengths}

    def cell(self, model: CausalLM, tokenizer: Any, plan: Plan, task: str, length: int) -> Cell:
        with _masked(model, plan):
            losses = losses_by_position(model, self.made[length], bins=BINS, batch_size=max(1, self.tokens // length))
        return {"losses": np.round(losses, 6).tolist()}

    def context(self, length: int) -> int:
        return length


@dataclass
class SumMeasure:
    """Sums of four numbers, generated with caches as the plan has them, with and without thinking.

    lengths: digits of each number; prompts: sums of each
    """

    lengths: Sequence[int]
    prompts: int
    seed: int
    tasks: Sequence[str] = ("thinking", "direct")
    made: dict[int, list[Sum]] = field(default_factory=dict)

    def conditions(self) -> dict[str, Any]:
        return {"sums": self.prompts, "seed": self.seed, "operands": OPERANDS}

    def about(self) -> dict[str, dict[str, Any]]:
        """A guess is any number that the sum may be."""
        what = f"sums of {OPERANDS} numbers; the length is their digits"
        chance = {str(n): 1 / (OPERANDS * (10**n - 10 ** (n - 1) - 1) + 1) for n in self.lengths}
        return {
            task: {"what": f"{what}, {task}", "chance": max(chance.values()), "chances": chance} for task in self.tasks
        }

    def prepare(self, tokenizer: Any) -> None:
        for digits in self.lengths:
            rng = np.random.default_rng((self.seed, digits))
            self.made[digits] = [draw_sum(rng, OPERANDS, digits, held_out=True) for _ in range(self.prompts)]

    def cell(self, model: CausalLM, tokenizer: Any, plan: Plan, task: str, length: int) -> Cell:
        found = solved(model, tokenizer, self.made[length], thinking=task == "thinking", plan=plan)
        return {"right": [int(r) for r in found]}

    def context(self, length: int) -> int:
        return 1024


def _masked(model: CausalLM, plan: Plan) -> Any:
    full = plan.full_heads(layers_of(model).num_kv_heads)
    return masked_heads(model, full, sink=plan.sink, recent=plan.recent, align=plan.align)


def _fields(task: Any) -> dict[str, Any]:
    return asdict(task)
