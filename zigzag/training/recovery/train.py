"""The recovery of a model under a plan: from nothing to an adapter or a merged model, or on from a checkpoint."""

import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from zigzag.measuring.answers import answer
from zigzag.measuring.prompts import PasskeyPrompt, passkey_prompts
from zigzag.models.draft_heads.files import places
from zigzag.models.load import check_weights
from zigzag.plans.layers import LayerPlan
from zigzag.plans.opened import opened_layers
from zigzag.plans.window import Window
from zigzag.reference.errors import ArgumentError, ModelError, PlanError
from zigzag.running.interception import check_free
from zigzag.running.masking import masked_heads
from zigzag.running.model_layers import check_plan, layers_of
from zigzag.running.weights import evaluating
from zigzag.training import state as files
from zigzag.training.adamw import AdamW
from zigzag.training.heads.text import token_streams
from zigzag.training.loop import Log, Pace, begun, fitted, run_steps
from zigzag.training.recovery.card import write_card
from zigzag.training.recovery.config import RecoveryTraining
from zigzag.training.recovery.learning import Learner, make_learner
from zigzag.training.recovery.lessons import Lessons, Maker
from zigzag.training.recovery.loss import check_head, checkpointed, distance, weights_of

OP = "recover"
PLAN = "plan.json"
HELD_OUT = 2  # steps' worth of rows that are held out, by which it is judged
JUDGED_SEED = 2_000_000  # of the held-out prompts; those of lessons are above 2^31
BEYOND = 16  # tokens between what a streaming layer still sees and what is asked for


class RecoveryRun:
    """Learner, optimizer, rows. What is learned from is the model as it was, under full attention, in the same step."""

    def __init__(
        self, config: RecoveryTraining, model: Any, tokenizer: Any, plan: LayerPlan, streams: dict[str, Tensor]
    ) -> None:
        self.config, self.model, self.tokenizer, self.plan, self.streams = config, model, tokenizer, plan, streams
        self.maker = Maker(config, tokenizer, streams, least_distance(plan), model.device)
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(config.seed)  # of what an adapter begins with
            self.learner: Learner = make_learner(config, model, plan)
        self.optimizer = AdamW(
            OP, self.learner.weights, peak=config.peak, weight_decay=config.weight_decay, clip=config.clip
        )
        self.step_number = 0

    @property
    def steps(self) -> int:
        return self.config.steps

    def step(self) -> Tensor:
        lessons = self.maker.rows(self.step_number)
        before = self._before(lessons)
        with self._now(), checkpointed(self.model) if self.config.checkpointing else ExitStack(), torch.enable_grad():
            loss = self._loss(lessons, before)
            loss.backward()  # in here: what is computed again must find the same masks and weights
        with torch.no_grad():
            self.optimizer.step(self.config.rate(self.step_number), self.learner.gradients())
            self.learner.take()
        self.step_number += 1
        return loss.detach()

    def judged(self) -> dict[str, Any]:
        """Mean loss on rows that are held out, and passkeys found, both under the plan."""
        losses = []
        for number in range(HELD_OUT):
            lessons = self.maker.rows(number, "held out")
            before = self._before(lessons)
            with self._now(), torch.no_grad():
                losses.append(self._loss(lessons, before))
        with self._now():
            found = answer(self.model, self.prompts()).num_right
        return {"held_out": round(float(torch.stack(losses).mean()), 5), "passkeys": found}

    def prompts(self) -> list[PasskeyPrompt]:
        """Those to be judged by; never learned from."""
        return passkey_prompts(
            self.tokenizer,
            self.config.length,
            count=self.config.judged,
            seed=JUDGED_SEED,
            min_distance=least_distance(self.plan),
        )

    def keep(self, out: Path) -> None:
        self.learner.save(self.tokenizer, out)
        self.plan.save(out / PLAN)
        write_card(out, self.model)

    def state(self) -> dict[str, Tensor]:
        return self.optimizer.state() | {f"tokens.{name}": tokens for name, tokens in self.streams.items()}

    def load(self, tensors: dict[str, Tensor], step: int) -> None:
        self.optimizer.load(tensors)
        self.learner.take()
        self.step_number = step

    def _before(self, lessons: Lessons) -> Tensor:
        """[B, T, hidden] final states of the model as it was, all layers full."""
        with torch.no_grad():
            return self._states(lessons.tokens)

    @contextmanager
    def _now(self) -> Iterator[None]:
        """The model as it is by now, under the plan."""
        heads = self.plan.full_heads(layers_of(self.model).num_kv_heads)
        sink, recent, align = self.plan.sink, self.plan.recent, self.plan.align
        with self.learner.now(), masked_heads(self.model, heads, sink=sink, recent=recent, align=align):
            yield

    def _loss(self, lessons: Lessons, before: Tensor) -> Tensor:
        head, as_it_was = self.model.get_output_embeddings(), self.learner.logits_before
        with torch.no_grad():
            weights = weights_of(lessons, before, as_it_was)
        return distance(self._states(lessons.tokens), before, weights, (head, as_it_was), self.config.states)

    def _states(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.model.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state
        return found


def recover(
    config: RecoveryTraining,
    model: Any,
    tokenizer: Any,
    plan: LayerPlan | str | Path,
    out: Path,
    *,
    resume: bool = False,
    seconds: float | None = None,
    log: Log = print,
) -> bool:
    """Train what `config` chooses until the model says under `plan` what it said without; whether all steps were done.

    After a plan is chosen the model still has the weights that were trained without it. A short training with the
    plan's masks is the second stage of LoZA (arXiv 2512.23966), here by distillation: the loss is KL(before, now) of
    the next token, on texts, and on what is asked for far behind where it stands. The model is left as it was found.

    model: of transformers, as `load_model` gives it, in float32, bfloat16 or float64
    plan: some layer of it must stream, and rows be longer than its window
    out: gets adapter/ (PEFT's form; learn="lora") or model/ (a merged model), plan.json, README.md, log.jsonl and
        checkpoint.safetensors, all but the log every `save_every` steps
    resume: go on from the checkpoint in `out`, on the CPU bit for bit as if there had been no break
    seconds: time for the steps. A new run takes as many as fit into it; a resumed one keeps its number. When the time
        is over, the run ends as it is, saved.

    Raises PlanError for a plan of another model or without streaming layers, ArgumentError if `out` holds another run,
    rows are too short or there is too little text, ModelError for a model that cannot learn so, for a checkpoint that
    is missing or of another run, and for a loss that is not finite: what was saved before stays.
    """
    plan = opened_layers(plan)
    check_recovery(config, model, plan)
    window = [plan.sink, plan.recent, plan.align]
    asked = {"config": config.as_dict(), "model": fingerprint(model), "plan": plan.map(), "window": window}
    tensors, meta = begun(OP, out, asked, resume=resume)
    Maker(config, tokenizer, {}, least_distance(plan), model.device).check()
    made: list[RecoveryRun] = []

    def make(steps: int) -> RecoveryRun:
        while made:
            made.pop().learner.remove()
        made.append(RecoveryRun(replace(config, steps=steps), model, tokenizer, plan, streams))
        return made[-1]

    with evaluating(model):
        try:
            start = monotonic()
            streams = token_streams(OP, config, model, tokenizer, tensors)
            log(f"{monotonic() - start:.0f} s: {len(streams['training']):,} tokens to learn from")
            run = make(meta.get("steps", config.steps))
            if seconds is not None and not resume:
                run = fitted(make, config.steps, seconds, model.device)
            meta["steps"] = run.steps
            if resume:
                run.load(tensors, meta["step"])
                files.cut_log(out, run.step_number)
            else:
                out.mkdir(parents=True, exist_ok=True)
                files.write_line(out, _first_line(run))
            return run_steps(OP, run, out, meta, Pace(config.log_every, config.save_every, seconds), log)
        finally:
            while made:
                made.pop().learner.remove()


def check_recovery(config: RecoveryTraining, model: Any, plan: LayerPlan) -> None:
    """Raises what `recover` raises for this plan and this model."""
    if not isinstance(plan, LayerPlan):
        raise PlanError(f"recover: a LayerPlan is needed, got {type(plan).__name__}; make one with make_plan")
    check_plan(OP, plan, layers_of(model))
    if not plan.streams:
        raise PlanError("recover: no layer of the plan streams, so there is nothing to recover; give one that streams")
    if config.length <= (least := min(window.size for window in windows_of(plan))):
        raise ArgumentError(
            f"recover: rows of {config.length} tokens lie within the plan's window of {least}, so that it changes "
            f"nothing; give longer rows"
        )
    if model.dtype == torch.float16:
        raise ModelError("recover: float16 has no room for gradients; load the model in bfloat16 or float32")
    check_free(model)
    check_weights(model)
    check_head(model)


def least_distance(plan: LayerPlan) -> int:
    """Tokens between what is hidden and where it is asked for, so that no streaming layer sees both."""
    return max(128, max(window.recent for window in windows_of(plan)) + BEYOND)


def windows_of(plan: LayerPlan) -> list[Window]:
    """Those of the streaming layers."""
    return [window for layer in range(plan.num_layers) if (window := plan.window(layer)) is not None]


def fingerprint(model: Any) -> int:
    """Of some numbers of every weight, by which a model is known again in the same precision."""
    total = 0
    for name, weight in model.named_parameters():
        flat = weight.detach().flatten()
        some = flat[places(len(flat)).to(flat.device)].cpu().contiguous()
        total = zlib.crc32(name.encode() + some.view(torch.uint8).numpy().tobytes(), total)
    return total


def _first_line(run: RecoveryRun) -> dict[str, Any]:
    """Of the log: what is done, and how it stands before the first step."""
    weights = sum(map(torch.numel, run.learner.weights.values()))
    full = answer(run.model, run.prompts()).num_right
    return {
        "config": run.config.as_dict(),
        "plan": run.plan.map(),
        "window": [run.plan.sink, run.plan.recent, run.plan.align],
        "weights": weights,
        "full": {"passkeys": full},
        "before": run.judged(),
    }
