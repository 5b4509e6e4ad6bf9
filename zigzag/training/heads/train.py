"""The training of a draft head: from nothing to a folder that `zigzag.load_head` reads, or on from a checkpoint."""

from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from zigzag.models.draft_heads.files import own_weights, probes, save_head
from zigzag.models.draft_heads.kinds import KINDS, make_head
from zigzag.reference.errors import ModelError
from zigzag.training import state as files
from zigzag.training.adamw import AdamW
from zigzag.training.heads.card import write_card
from zigzag.training.heads.config import HeadTraining
from zigzag.training.heads.lessons import divergence, lessons, overlap, taught
from zigzag.training.heads.text import Streams, batch, token_streams
from zigzag.training.loop import Log, Pace, begun, fitted, run_steps

STATES = 0.1  # weight of a head's own states beside what they say
HELD_OUT = 4  # batches of texts that are held out, by which it is judged

OP = "train-drafter"


class HeadRun:
    """Head, optimizer, step. The head's own weights are float32 while they learn, the target stays as it is."""

    def __init__(self, config: HeadTraining, main: Any, streams: Streams) -> None:
        if main.dtype == torch.float16:
            raise ModelError("train-drafter: float16 has no room for gradients; load the model in bfloat16 or float32")
        self.config, self.main, self.streams = config, main, streams
        torch.manual_seed(config.seed)
        self.sizes = {**KINDS[config.kind].sizes(main), **config.sizes}
        self.head = make_head(config.kind, main, **config.sizes)
        own = own_weights(self.head)
        self.weights = {name: weight for name, weight in self.head.named_parameters() if name in own}
        for weight in self.weights.values():
            weight.data = weight.data.float()
        self.optimizer = AdamW(OP, self.weights, peak=config.peak, weight_decay=config.weight_decay, clip=config.clip)
        self.step_number = 0

    @property
    def steps(self) -> int:
        return self.config.steps

    def step(self) -> Tensor:
        config = self.config
        tokens = batch(self.streams["training"], config, self.step_number)
        total = torch.zeros((), device=tokens.device)
        with self._precision():
            given = taught(self.main, self.head, tokens)
            for lesson in lessons(self.main, self.head, given, config.depth, self._seed()):
                loss = divergence(lesson, config.divergence) + STATES * lesson.state
                part = config.decay**lesson.position * loss
                total = total + part
        grads = torch.autograd.grad(total, list(self.weights.values()), allow_unused=True)
        self.optimizer.step(config.rate(self.step_number), dict(zip(self.weights, grads, strict=True)))
        self.step_number += 1
        return total.detach()

    def judged(self) -> dict[str, Any]:
        """Mean acceptance of a sampled draft by position, on tokens that are held out."""
        batches = (batch(self.streams["held out"], self.config, number) for number in range(HELD_OUT))
        found: dict[int, list[Tensor]] = {}
        with torch.no_grad(), self._precision():
            for number, tokens in enumerate(batches):
                given = taught(self.main, self.head, tokens)
                for lesson in lessons(self.main, self.head, given, self.config.depth, number):
                    found.setdefault(lesson.position, []).append(overlap(lesson))
        return {"accepted": [round(float(torch.stack(each).mean()), 4) for _, each in sorted(found.items())]}

    def keep(self, out: Path) -> None:
        save_head(self.head, self.config.kind, self.sizes, self.main, out)
        write_card(out, self.main)

    def state(self) -> dict[str, Tensor]:
        return self.optimizer.state() | {f"tokens.{name}": tokens for name, tokens in self.streams.items()}

    def load(self, tensors: dict[str, Tensor], step: int) -> None:
        self.optimizer.load(tensors)
        self.step_number = step

    def _seed(self) -> int:
        return self.config.seed * 1_000_003 + self.step_number

    def _precision(self) -> Any:
        """Half precision on a GPU, where the target has it."""
        kind = self.main.device.type
        return torch.autocast(kind, torch.bfloat16, enabled=self.main.dtype == torch.bfloat16)


def train_head(
    config: HeadTraining,
    model: Any,
    tokenizer: Any,
    out: Path,
    streams: Streams | None = None,
    *,
    resume: bool = False,
    seconds: float | None = None,
    log: Log = print,
) -> bool:
    """Train, and write the head and its card into `out`; whether all steps were done.

    out: also gets log.jsonl and checkpoint.safetensors, every `save_every` steps
    streams: tokens of an earlier head's run over the same model, tokens and seed; filled where it is empty
    resume: go on from the checkpoint in `out`, on the CPU bit for bit as if there had been no break
    seconds: time for the steps. A new run takes as many as fit into it; a resumed one keeps its plan. When the time is
        over, the run ends as it is, with a checkpoint and a head.

    Raises ArgumentError if `out` holds another run or there is too little text, ModelError for a checkpoint that is
    missing or does not fit, and for a loss that is not finite: the last good checkpoint and head stay.
    """
    asked = {"config": config.as_dict(), "probes": probes(model)}
    tensors, meta = begun(OP, out, asked, resume=resume)
    start, tokens = monotonic(), {} if streams is None else streams

    def make(steps: int) -> HeadRun:
        return HeadRun(replace(config, steps=steps), model, tokens)

    run = make(meta.get("steps", config.steps))
    if resume or not tokens:
        tokens.update(token_streams(OP, config, model, tokenizer, tensors))
    log(f"{monotonic() - start:.0f} s: {len(tokens['training']):,} tokens to learn from")
    if seconds is not None and not resume:
        run = fitted(make, config.steps, seconds, model.device)
    meta["steps"] = run.steps
    if resume:
        run.load(tensors, meta["step"])
        files.cut_log(out, run.step_number)
    else:
        out.mkdir(parents=True, exist_ok=True)
        weights = sum(map(torch.numel, run.weights.values()))
        files.write_line(out, {"config": run.config.as_dict(), "weights": weights})
    return run_steps(OP, run, out, meta, Pace(config.log_every, config.save_every, seconds), log)
