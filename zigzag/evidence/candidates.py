"""What a suite measures beside full attention: plans of files, plans made of scores, rivals, recovered models."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from zigzag.measuring.rivals import random_layers
from zigzag.models.decoder import CausalLM
from zigzag.models.load import load_model
from zigzag.plans import layers, stored
from zigzag.plans.heads import HeadPlan, Plan
from zigzag.plans.layers import LayerPlan, head_map, kinds_of, make_plan
from zigzag.plans.scores import HeadScores
from zigzag.plans.window import num_streaming
from zigzag.reference.errors import ArgumentError, ModelError, PlanError

WINDOW = (16, 112)  # sink and recent where neither plans nor scores say another


@dataclass(frozen=True)
class Candidate:
    """One row of a suite.

    kind: "full", "none", "layers", "heads" or "random": what the plan is
    model: folder of `zigzag recover` whose model it is measured on; None: the suite's own
    """

    name: str
    kind: str
    plan: Plan
    model: str | None = None

    @property
    def key(self) -> str:
        """The same for candidates whose measurements would be the same: map, window and model."""
        window = f"{self.plan.sink}+{self.plan.recent}/{self.plan.align}" if self.plan.streams else "full"
        digest = sha256(self.plan.map().encode()).hexdigest()[:16]
        return f"{digest} {window}" + (f" {self.model}" if self.model else "")

    def about(self) -> dict[str, Any]:
        """What the results keep of it, but for its bytes."""
        scores, recent = getattr(self.plan, "scores", None), self.plan.recent
        return {
            "kind": self.kind,
            "key": self.key,
            "map": self.plan.map(),
            "window": [self.plan.sink, list(recent) if isinstance(recent, tuple) else recent, self.plan.align],
            "model": self.model,
            "method": None if scores is None else scores.method,
            "calibrated_on": None if scores is None else scores.details,
        }


def load_plan(path: str | Path) -> Plan:
    """A layer or a head-wise plan, whichever the file holds; PlanError for anything else."""
    if stored.read_json(path).get("format") == layers.FORMAT:
        return LayerPlan.load(path)
    return HeadPlan.load(path)


def from_files(paths: Sequence[Path]) -> list[Candidate]:
    """Plans by the names of their files; ArgumentError for two of one name."""
    return [_named(path.stem, load_plan(path)) for path in paths]


def from_scores(scores: HeadScores, share: float, draws: int) -> list[Candidate]:
    """The layer plan with so large a share of streaming layers, the head-wise one of as many heads, random layers."""
    streaming = num_streaming("evidence", scores.num_layers, share)
    num_full = scores.num_layers - streaming
    plan = make_plan(scores, num_full=num_full)
    heads = HeadPlan(tuple(map(tuple, head_map(scores, num_full).tolist())), scores.sink, scores.recent)
    found = [
        Candidate(f"{scores.method}, {streaming} layers", "layers", plan),
        Candidate(f"{scores.method}, heads as {streaming} layers", "heads", heads),
    ]
    for draw in range(draws):
        kinds = kinds_of(random_layers(scores.num_layers, num_full, draw))
        drawn = LayerPlan(kinds, scores.sink, scores.recent, num_kv_heads=scores.num_kv_heads)
        found.append(Candidate(f"random, {streaming} layers, draw {draw}", "random", drawn))
    return found


def from_recovered(folder: Path) -> list[Candidate]:
    """The plan of a folder that `zigzag recover` wrote, before the recovery and after it.

    What was made lies below it, in adapter/ or model/, or in the folder itself.
    """
    made = next((folder / part for part in ("adapter", "model") if (folder / part).is_dir()), folder)
    before = _named(f"{folder.name}, before recovery", load_plan(folder / "plan.json"))
    return [before, Candidate(f"{folder.name}, recovered", before.kind, before.plan, str(made))]


def outermost(candidates: Sequence[Candidate], num_layers: int, num_kv_heads: int) -> list[Candidate]:
    """Full attention, the candidates, and all layers streaming by the (widest) window of the first of them.

    Raises PlanError for candidates of another depth, ArgumentError for two of one name.
    """
    sink, recent = (candidates[0].plan.sink, candidates[0].plan.recent) if candidates else WINDOW
    recent = max(recent) if isinstance(recent, tuple) else recent
    ends = [
        Candidate(name, kind, LayerPlan((layer,) * num_layers, sink, recent, num_kv_heads=num_kv_heads))
        for name, kind, layer in (("full attention", "full", "full"), ("all layers stream", "none", "streaming"))
    ]
    for one in candidates:
        if one.plan.num_layers != num_layers:
            raise PlanError(
                f"evidence: {one.name} is for {one.plan.num_layers} layers, the model has {num_layers}; make another"
            )
    every = [ends[0], *candidates, ends[1]]
    check_names(every)
    return every


def check_names(candidates: Sequence[Candidate]) -> None:
    """ArgumentError where two rows would have one name."""
    names = [one.name for one in candidates]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ArgumentError(f"evidence: each plan needs a name of its own, {twice[0]!r} comes twice; rename a file")


@contextmanager
def opened(candidate: Candidate, model: CausalLM) -> Iterator[CausalLM]:
    """The model that a candidate is measured on: the given one, with an adapter for the while, or another."""
    if candidate.model is None:
        yield model
        return
    folder = Path(candidate.model)
    if not (folder / "adapter_config.json").is_file():
        yield load_model(str(folder), device=str(model.device), dtype=str(model.dtype).removeprefix("torch."))[0]
        return
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ModelError(f"evidence: {folder} holds an adapter, which needs: pip install peft ({error})") from error
    adapted: Any = PeftModel.from_pretrained(model, folder)  # type: ignore[arg-type]
    try:
        yield adapted.get_base_model()
    finally:
        adapted.unload()


def _named(name: str, plan: Plan) -> Candidate:
    return Candidate(name, "layers" if isinstance(plan, LayerPlan) else "heads", plan)
