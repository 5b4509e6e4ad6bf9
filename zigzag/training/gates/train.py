"""The training of gates: from all of them at 1 to scores of heads or layers, or on from a checkpoint."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zigzag.measuring.corpus import read_corpus
from zigzag.measuring.observing import heads_of
from zigzag.models.draft_heads.files import model_name, probes
from zigzag.models.load import check_weights
from zigzag.plans.scores import HeadScores
from zigzag.reference.errors import ModelError
from zigzag.running.interception import intercepted
from zigzag.running.weights import evaluating, frozen
from zigzag.training import state as files
from zigzag.training.gates.config import HEADS, OP, GateTraining
from zigzag.training.gates.descent import Budgeted, Descent, Penalised
from zigzag.training.gates.lessons import LONGEST, Lesson, Lessons
from zigzag.training.gates.mixing import Mixture, distance, recomputing
from zigzag.training.heads.text import corpus_tokens
from zigzag.training.loop import Log, Pace, begun, fitted, run_steps

CORPUS_BYTES = 60_000_000
SCORES = "scores.json"
UNMOVED = 1e-4  # of the states' mean square: what gates of 1 may change by, for the order of sums


class GateRun:
    """Gates, how they move, step. The model stays as it is; a row a step, as published."""

    def __init__(self, config: GateTraining, model: Any, mixture: Mixture, lessons: Any) -> None:
        self.config, self.model, self.mixture, self.lessons = config, model, mixture, lessons
        num_layers, num_kv_heads = heads_of(model)
        wide = num_kv_heads if config.method == HEADS else 1
        self.gates = torch.ones(num_layers, wide, device=model.device, requires_grad=True)
        self.descent: Descent = (Penalised if config.method == HEADS else Budgeted)(config, self.gates.detach())
        self.step_number = 0

    @property
    def steps(self) -> int:
        return self.config.steps

    def step(self) -> Tensor:
        apart = self._distance(self.lessons.at(self.step_number))
        loss = apart + self.descent.penalty(self.gates)
        (gradient,) = torch.autograd.grad(loss, self.gates)
        self.mixture.forget()
        with torch.no_grad():
            self.descent.move(self.gates, gradient, self.step_number)
        self.step_number += 1
        return loss.detach()

    def judged(self) -> dict[str, Any]:
        """How far states of a row of other needles move; the mean gate, and the share of gates above a half."""
        with torch.no_grad():
            apart = float(self._distance(self.lessons.held_out()))
            gates = self.gates.clamp(0, 1)
            share = (gates > 0.5).float().mean()
        return {"distance": round(apart, 6), "mean": round(float(gates.mean()), 4), "above": round(float(share), 4)}

    def state(self) -> dict[str, Tensor]:
        return {"gates": self.gates, **{f"descent.{name}": held for name, held in self.descent.state().items()}}

    def load(self, tensors: dict[str, Tensor], step: int) -> None:
        with torch.no_grad():
            self.gates.copy_(tensors["gates"])
        self.descent.load({name.removeprefix("descent."): held for name, held in tensors.items()})
        self.step_number = step

    def keep(self, out: Path) -> None:
        self.scores().save(out / SCORES)

    def scores(self) -> HeadScores:
        """The gates as they are, [L, G]."""
        values = self.gates.detach().clamp(0, 1).double().expand(-1, heads_of(self.model)[1]).cpu().numpy()
        config = self.config
        details = {"steps": [self.step_number, config.steps], "num_full": config.num_full}
        return HeadScores(values, config.method, config.sink, config.recent, model_name(self.model), details)

    def check_start(self) -> None:
        """ModelError where gates of 1 do not give the states of full attention: no distance would mean anything."""
        with torch.no_grad():
            lesson = self.lessons.at(0)
            ids = torch.tensor([lesson.ids], device=self.model.device)
            size = self.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state.float().square().mean()
            apart = self._distance(lesson)
        self.mixture.forget()
        if not bool(apart <= UNMOVED * size):  # so that NaN counts
            raise ModelError(
                f"{OP}: two forwards of this model give states {float(apart):.3g} apart (mean square "
                f"{float(size):.3g}); gates need a forward that is the same each time: no dropout, finite weights"
            )

    def _distance(self, lesson: Lesson) -> Tensor:
        ids = torch.tensor([lesson.ids], device=self.model.device)
        return distance(self.model, self.mixture, self.gates, ids, lesson.first, lesson.last)


def train_gates(
    model: Any,
    tokenizer: Any,
    config: GateTraining,
    out: str | Path,
    *,
    resume: bool = False,
    seconds: float | None = None,
    lessons: Any = None,
    log: Log = print,
) -> HeadScores | None:
    """Scores [L, G] in [0, 1], learned: 1 for heads whose full attention the last hidden states need.

    Gates start at 1 and fall where streaming moves the states little: under a penalty on their mean
    ("trained_gates", DuoAttention, arXiv 2410.10819), or so that `num_full` layers stay full in the end
    ("trained_layer_gates", as LoZA calibrates, arXiv 2512.23966; a budget in the place of a weight is ours).

    model: a decoder that `zigzag.attach` takes. It is left as it was found.
    out: a folder for the run: log.jsonl, checkpoint.safetensors every `save_every` steps, scores.json
    resume: go on from the checkpoint in `out`, on the CPU bit for bit as if there had been no break
    seconds: time for the steps, as of `zigzag train-drafter`; when it is over, what was reached is saved
    lessons: rows in the place of the needles, with `at(step)` and `held_out()`
    return: None if the time was over before all steps were done

    Memory: the attention outputs and one hidden state of each layer, one layer's activations, and the model.

    Raises ArgumentError if `out` holds another run, or rows are too short or too long; ModelError for a checkpoint
    that is missing or does not fit, and for a loss that is not finite: the last good checkpoint and scores stay.
    """
    out = Path(out)
    tensors, meta = begun(OP, out, {"config": config.as_dict(), "probes": probes(model)}, resume=resume)
    num_layers, _ = heads_of(model)
    if config.num_full is not None and config.num_full > num_layers:
        raise ModelError(
            f"{OP}: num_full must be at most {num_layers}, the layers that may stream, got {config.num_full}"
        )
    check_weights(model)
    rows = needles(config, model, tokenizer) if lessons is None else lessons
    mixture = Mixture(model, config.window)
    with evaluating(model), frozen(model), recomputing(model), intercepted(model, mixture):

        def make(steps: int) -> GateRun:
            return GateRun(replace(config, steps=steps), model, mixture, rows)

        run = make(meta.get("steps", config.steps))
        run.check_start()
        if resume:
            run.load(tensors, meta["step"])
            files.cut_log(out, run.step_number)
        else:
            if seconds is not None:
                run = fitted(make, config.steps, seconds, model.device)
            out.mkdir(parents=True, exist_ok=True)
            files.write_line(out, {"config": run.config.as_dict()})
        meta["steps"] = run.steps
        done = run_steps(OP, run, out, meta, Pace(config.log_every, config.save_every, seconds), log)
    return run.scores() if done else None


def needles(config: GateTraining, model: Any, tokenizer: Any) -> Lessons:
    """Rows of needles in the text that this Python has, as long as the model takes them."""
    context = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    most = 2 * (config.longest or LONGEST)
    return Lessons(
        config, tokenizer, corpus_tokens(tokenizer, read_corpus(CORPUS_BYTES).training, most, op=OP), context
    )
