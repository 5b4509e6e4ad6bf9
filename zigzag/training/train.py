"""A training run: from nothing to a model folder, or on from a checkpoint."""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zigzag.measuring.corpus import Corpus, read_corpus
from zigzag.models.placement import usable_device
from zigzag.reference.errors import ArgumentError, ModelError
from zigzag.reference.glm.config import GlmConfig
from zigzag.training import state as files
from zigzag.training.balance import update_bias
from zigzag.training.config import ASKED, Stage, TrainingConfig
from zigzag.training.data import Batch, Batches, ahead
from zigzag.training.export import config_json, export
from zigzag.training.model import TrainingModel, num_sparse, rotations
from zigzag.training.optimizer import Optimizer
from zigzag.training.pieces import asked_texts, make_pieces, task_texts
from zigzag.training.schedule import Schedule, fitted, planned
from zigzag.training.tally import Tally, loss_weights, target_kinds
from zigzag.training.tokenizer import read_tokenizer, train_tokenizer

WARM, TIMED = 3, 8  # steps of each stage that are run to see how long one takes
MARGIN = 0.94  # of the time that the planned steps may take

Log = Callable[[str], object]


class Run:
    """The state of a run: model, optimizer, step; `step` takes one batch."""

    def __init__(self, config: TrainingConfig, sizes: GlmConfig, device: torch.device, *, compiled: bool) -> None:
        self.config, self.device = config, device
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        model = TrainingModel(sizes, dtype=dtype, depth=config.mtp_depth, compiled=compiled)
        self.model = model.initialise(config.seed).to(self.device)
        self.optimizer = Optimizer(
            self.model.named_parameters(), momentum=config.momentum, weight_decay=config.weight_decay
        )
        self.tally = Tally(num_sparse(sizes), sizes.n_routed_experts, config.mtp_depth, self.device)
        self.weights = loss_weights(config.loss_weights, self.device)
        self._rope: dict[tuple[float, int], tuple[Tensor, Tensor]] = {}

    def step(self, batch: Batch, stage: Stage, learning_rate: float) -> None:
        """One step, without waiting for the device."""
        ids, kinds = self._sent(batch.ids).long(), target_kinds(self._sent(batch.kinds), self.config.mtp_depth)
        output = self.model(ids, self._rotations(stage))
        weights = self.weights[kinds]
        each = (weights * output.losses).sum(dim=(1, 2)) / weights.sum(dim=(1, 2)).clamp_min(1e-6)
        loss = each[0] + stage.mtp_weight * each[1:].mean() + self.config.balance_weight * output.balance
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip, foreach=True)
        self.optimizer.step(learning_rate)
        update_bias(self.model.bias, output.load, stage.bias_rate)
        self.tally.add(output, kinds)

    def state(self) -> dict[str, Tensor]:
        parts = {"model": self.model.state_dict(), "optimizer": self.optimizer.state(), "tally": self.tally.state()}
        return {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}

    def load(self, tensors: dict[str, Tensor], step: int) -> None:
        """Raises ModelError if the tensors are not those of this run."""
        own = self.state()
        wrong = [name for name in own if name not in tensors or tensors[name].shape != own[name].shape]
        if wrong or len(tensors) != len(own):
            raise ModelError(
                f"training: the checkpoint does not fit the configuration: {len(wrong)} of {len(own)} tensors are "
                f"missing or of another shape ({', '.join(wrong[:3])}); give the configuration that it was made with"
            )
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(tensors[name])
        self.optimizer.step_number = step

    def finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _sent(self, array: Any) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":  # from memory that is not pinned, the copy would wait for the steps before
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def _rotations(self, stage: Stage) -> tuple[Tensor, Tensor]:
        key = (stage.rope_theta, stage.length)
        if key not in self._rope:
            self._rope[key] = rotations(self.model.config, *key, self.device)
        return self._rope[key]


def train(
    config: TrainingConfig,
    out: Path,
    *,
    device: str | torch.device = "cpu",
    resume: bool = False,
    seconds: float | None = None,
    workers: int = 0,
    compiled: bool = False,
    log: Log = print,
) -> bool:
    """Train, and write `out`/model; whether all steps were done.

    out: also gets log.jsonl, a line every `log_every` steps, and checkpoint.safetensors, every `save_every`
    resume: go on from the checkpoint in `out`, on the CPU bit for bit as if there had been no break
    seconds: time for the whole call. A new run fits the steps of its stages into it; a resumed one keeps its plan. When
        the time is over, the run ends as it is, with a checkpoint.
    workers: processes that make batches; compiled: whether to use torch.compile

    Raises ArgumentError if `out` holds another run, ModelError for a checkpoint that is missing or does not fit.
    """
    start = time.monotonic()
    place = usable_device("train: device", device)
    meta: dict[str, Any] = {}
    if resume:
        tensors, meta = files.load_state(out)
        if meta["config"] != json.loads(json.dumps(config.as_dict())):
            raise ModelError(f"training: {out} was started with another configuration; give that one to --resume")
    else:
        files.check_free(out)
    out.mkdir(parents=True, exist_ok=True)
    corpus = read_corpus(config.corpus_bytes)
    tokenizer = read_tokenizer(out / files.TOKENIZER) if resume else _new_tokenizer(config, corpus, out)
    log(f"{time.monotonic() - start:.0f} s: corpus of {len(corpus.training)} texts, {len(tokenizer)} tokens")
    batches = Batches(make_pieces(tokenizer, corpus.training), config)
    run = Run(config, GlmConfig.from_dict(config_json(config, tokenizer)), place, compiled=compiled)
    if resume:
        if meta["corpus"] != corpus.fingerprint:
            raise ModelError(f"training: {out} was started with another Python's library text; resume with that Python")
        run.load(tensors, meta["step"])
        schedule, step = Schedule(config, tuple(meta["steps"])), meta["step"]
        files.cut_log(out, step)
    else:
        schedule, step = planned(config), 0
        if seconds is not None:
            costs = _costs(run, batches, workers, log)
            left = seconds - (time.monotonic() - start)
            if left <= 0:
                raise ArgumentError(f"training: --seconds must be more than {seconds - left:.0f}, for getting ready")
            schedule = fitted(config, MARGIN * left, costs)
        meta = {"config": config.as_dict(), "steps": schedule.steps, "corpus": corpus.fingerprint, "seconds": 0.0}
        files.write_line(out, {**_conditions(place), **meta, "parameters": _count(run.model)})
    log(f"{time.monotonic() - start:.0f} s: steps {' + '.join(map(str, schedule.steps))}, from {step}")
    deadline = None if seconds is None else start + seconds
    step = _steps(run, schedule, batches, step, out, meta, deadline, workers, start, log)
    finished = step == schedule.total
    export(run.model, tokenizer, config, out / files.MODEL)
    files.write_line(
        out,
        {
            "finished": finished,
            "step": step,
            "of": schedule.total,
            "seconds": round(meta["seconds"] + time.monotonic() - start, 1),
        },
    )
    return finished


def _steps(
    run: Run,
    schedule: Schedule,
    batches: Batches,
    step: int,
    out: Path,
    meta: dict[str, Any],
    deadline: float | None,
    workers: int,
    start: float,
    log: Log,
) -> int:
    """The steps from `step` on, until all are done or the time is over; returns how many are done in all."""
    config = run.config
    before, tokens, since = meta["seconds"], 0, time.monotonic()
    coming = ahead(batches, [(schedule.stage_of(i)[0], i) for i in range(step, schedule.total)], workers)
    while step < schedule.total:
        stage, rate = schedule.stage_of(step)[0], schedule.learning_rate(step)
        run.step(next(coming), stage, rate)
        step += 1
        tokens += stage.rows * stage.length
        last = step == schedule.total
        if step % config.log_every == 0 or last:
            line = run.tally.line()  # waits for the device
            now = time.monotonic()
            files.write_line(
                out,
                {
                    "step": step,
                    "stage": stage.name,
                    "seconds": round(before + now - start, 2),
                    "learning_rate": rate,
                    "tokens_per_second": round(tokens / (now - since)),
                    **line,
                },
            )
            log(
                f"{now - start:.0f} s: step {step} of {schedule.total}, {tokens / (now - since):,.0f} tokens/s, "
                f"losses {line['losses']}"
            )
            tokens, since = 0, now
        over = deadline is not None and time.monotonic() > deadline
        if step % config.save_every == 0 or last or over:
            seconds = before + time.monotonic() - start
            files.save_state(out, run.state(), {**meta, "step": step, "seconds": seconds})
        if over and not last:
            log(f"time is up after step {step} of {schedule.total}; --resume goes on")
            break
    coming.close()
    return step


def _new_tokenizer(config: TrainingConfig, corpus: Corpus, out: Path) -> Any:
    def texts() -> Iterator[str]:
        yield from task_texts()
        if not config.tasks.isdisjoint(ASKED):
            yield from asked_texts()
        left = config.tokenizer_bytes
        for text in corpus.training:
            if left <= 0:
                return
            yield text[:left]
            left -= len(text)

    tokenizer = train_tokenizer(texts(), config.vocabulary)
    tokenizer.save_pretrained(out / files.TOKENIZER)
    return tokenizer


def _costs(run: Run, batches: Batches, workers: int, log: Log) -> list[float]:
    """Seconds of a step of each stage, compiled by then; the run is afterwards as it was."""
    saved = {name: tensor.clone() for name, tensor in run.state().items()}
    costs = []
    for stage in run.config.stages:
        start = time.monotonic()
        batch = batches.batch(stage, 0)
        making = (time.monotonic() - start) / max(1, workers)
        for _ in range(WARM):
            run.step(batch, stage, 0.0)
        run.finish()
        ready = time.monotonic()
        for _ in range(TIMED):
            run.step(batch, stage, 0.0)
        run.finish()
        step = (time.monotonic() - ready) / TIMED
        costs.append(max(step, making) if workers else step + making)
        log(
            f"stage {stage.name}: ready in {ready - start:.1f} s, a step {1000 * step:.1f} ms, its batch "
            f"{1000 * making:.1f} ms"
        )
    run.load(saved, 0)
    return costs


def _count(model: TrainingModel) -> int:
    return sum(tensor.numel() for tensor in model.state_dict().values())


def _conditions(device: torch.device) -> dict[str, Any]:
    import platform

    on_gpu = device.type == "cuda"
    return {
        "device": f"one {torch.cuda.get_device_name()}" if on_gpu else f"{os.cpu_count()} CPU cores",
        "python": platform.python_version(),
        "torch": torch.__version__.partition("+")[0],
    }
