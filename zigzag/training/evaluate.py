"""What a trained model can do, on held-out cases, as `zigzag.load` serves it: evaluation.json of a run's folder."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zigzag.evidence.sums import solved, sum_prompt
from zigzag.files.json_files import read_json, write_json
from zigzag.generation.drafting import LookupDrafter, MtpDrafter
from zigzag.generation.generate import generate
from zigzag.generation.statistics import Statistics
from zigzag.measuring.answers import answer
from zigzag.measuring.calibration import METHODS, calibrate
from zigzag.measuring.corpus import read_corpus
from zigzag.measuring.prompts import PasskeyPrompt, Prompt, passkey_prompts
from zigzag.measuring.rivals import HeadMap
from zigzag.models.decoder import Decoder
from zigzag.models.glm import load_both
from zigzag.models.mtp_head import MtpHead
from zigzag.models.placement import usable_device
from zigzag.plans.layers import every_head, head_map, make_plan
from zigzag.reference.errors import ArgumentError
from zigzag.running.masking import masked_heads
from zigzag.training import cases
from zigzag.training import state as files
from zigzag.training.card import write_card
from zigzag.training.config import ASKED, TrainingConfig, from_dict
from zigzag.training.documents import Documents
from zigzag.training.pieces import make_pieces
from zigzag.training.tokenizer import read_tokenizer

SINK, RECENT = 16, 112
LENGTHS = (1024, 2048, 4096, 8192, 16_384, 32_768)  # as far as the model's configuration goes
CURVE_LENGTH = 2048  # of the curves over the share of streaming layers
SHARES = (0.25, 0.5, 2 / 3, 0.75, 5 / 6, 11 / 12)
DRAWS = 20  # sets of random layers, each with its share of the cases
TOKENS_AT_ONCE = 32_768
MOST_DRAFTS, DRAFTED = 4, 96  # drafts a round, tokens generated with them
MOST_SHOWN = 800  # characters of a part in the log
SEEDS = {
    "passkey": 1_000_000,
    "recall": 2_000_000,
    "copy": 3_000_000,
    "sums": 4_000_000,
    "asked": 5_000_000,
    "calibration": 0,
}

Log = Callable[[str], object]


@dataclass(frozen=True)
class Subject:
    """What is evaluated, and on how much."""

    model: Decoder
    mtp: MtpHead
    tokenizer: Any
    documents: Documents
    held_out: list[str]  # texts
    config: TrainingConfig
    count: int
    lengths: tuple[int, ...]

    @property
    def curve_length(self) -> int:
        return min(CURVE_LENGTH, max(self.lengths))

    @property
    def curve_counts(self) -> list[int]:
        """How many layers stream in the points of the curves."""
        layers = self.model.config.num_hidden_layers
        return sorted({round(layers * share) for share in SHARES} - {0, layers})

    def curve_cases(self) -> list[PasskeyPrompt]:
        return cases.passkey_cases(self.tokenizer, self.curve_length, self.count, SEEDS["passkey"] + 500_000)

    def at_once(self, length: int) -> int:
        return max(1, TOKENS_AT_ONCE // length)

    def maps(self) -> dict[str, HeadMap]:
        shape = (self.model.config.num_hidden_layers, self.model.config.num_key_value_heads)
        return {"full": np.ones(shape, dtype=bool), "streaming": np.zeros(shape, dtype=bool)}


def evaluate(
    out: Path,
    *,
    device: str | torch.device = "cpu",
    count: int = 100,
    lengths: tuple[int, ...] = LENGTHS,
    log: Log = print,
) -> dict[str, Any]:
    """Evaluate `out`/model on `count` held-out cases of each kind that it was trained on; writes and returns
    `out`/evaluation.json. Passkeys are asked for, and the loss on text is measured, whatever it was trained on.

    The file is written after each part, so that a call that is cut off leaves what it has; parts that are there already
    are not measured again unless the model or the cases are others. The model card is written at the end.

    Raises ModelError if the folder holds no whole model.
    """
    lines = files.read_log(out)
    config = from_dict(lines[0]["config"])
    place = usable_device("evaluate: device", device)
    dtype = torch.bfloat16 if place.type == "cuda" else torch.float32
    model, mtp = load_both(out / files.MODEL, dtype=dtype, device=place)
    tokenizer = read_tokenizer(out / files.MODEL)
    corpus = read_corpus(config.corpus_bytes)
    usable = tuple(n for n in lengths if n <= model.config.max_position_embeddings)
    documents = Documents(make_pieces(tokenizer, corpus.training[:1]), config)
    subject = Subject(model, mtp, tokenizer, documents, corpus.held_out, config, count, usable)
    parts: dict[str, Callable[[Subject], Any]] = {
        "retrieval": retrieval,
        "arithmetic": arithmetic,
        "copying": copying,
        "text": text_losses,
        "drafting": drafting,
        "curves": curves,
        "random": random_layers,
    }
    for left_out, task in (("arithmetic", "sums"), ("copying", "copy")):
        if task not in config.tasks:
            del parts[left_out]
    path = out / "evaluation.json"
    found = read_json(path, ArgumentError) if path.exists() else {}
    about = {"cases": count, "sink": SINK, "recent": RECENT, "lengths": list(usable), "step": lines[-1]["step"]}
    if {name: found.get(name) for name in about} != about:
        found = about
    for name, part in parts.items():
        if name not in found:
            start = time.monotonic()
            found[name] = part(subject)
            found[name]["seconds"] = round(time.monotonic() - start, 1)
            write_json(path, found)
            log(f"{name}, {found[name]['seconds']} s: {found[name]}"[:MOST_SHOWN])
    log(f"wrote {write_card(out, found)}")
    return found


def retrieval(subject: Subject) -> dict[str, Any]:
    """Passkeys, codes and the tasks' answers found, by length, with full attention and with all layers streaming."""
    documents, trained = subject.documents, subject.config.tasks
    makers: dict[str, Callable[[int, int, int], Sequence[Prompt]]]
    makers = {"passkey": partial(cases.passkey_cases, subject.tokenizer)}
    if "recall" in trained:
        makers["recall"] = partial(cases.recall_cases, documents)
    makers |= {task: partial(cases.task_cases, documents, task) for task in ASKED if task in trained}
    found: dict[str, Any] = {}
    for task, make in makers.items():
        for length in subject.lengths:
            asked = make(length, subject.count, SEEDS["asked" if task in ASKED else task])
            for name, heads in subject.maps().items():
                found.setdefault(task, {}).setdefault(str(length), {})[name] = _answered(subject, asked, heads, length)
    return found


def _answered(subject: Subject, asked: Sequence[Prompt], heads: HeadMap, length: int) -> dict[str, float]:
    with masked_heads(subject.model, heads, sink=SINK, recent=RECENT):
        answers = answer(subject.model, asked, batch_size=subject.at_once(length))
    return {"right": answers.num_right / len(asked), "loss": round(answers.loss, 5)}


def arithmetic(subject: Subject) -> dict[str, Any]:
    """The same sums in thinking and in direct mode, generated greedily, by the number of digits."""
    config = subject.config
    found: dict[str, Any] = {"operands": config.operands}
    for digits in range(config.least_digits, config.most_digits + 1):
        # Few digits have few held-out cases: a sixteenth of all.
        count = min(subject.count, max(1, (9 * 10 ** (digits - 1)) ** config.operands // 100))
        sums = cases.sum_cases(count, config.operands, digits, SEEDS["sums"])
        right = {
            mode: solved(subject.model, subject.tokenizer, sums, thinking=mode == "thinking")
            for mode in ("thinking", "direct")
        }
        found[str(digits)] = {mode: sum(rows) / len(sums) for mode, rows in right.items()}
    return found


def copying(subject: Subject) -> dict[str, Any]:
    asked = cases.copy_cases(subject.documents, subject.count, SEEDS["copy"])
    length = len(asked[0].input_ids)
    return {name: _answered(subject, asked, heads, length) for name, heads in subject.maps().items()}


def text_losses(subject: Subject) -> dict[str, Any]:
    """Mean loss a token on held-out texts, with full attention and with all layers streaming."""
    return {name: text_loss(subject, heads) for name, heads in subject.maps().items()}


def text_loss(subject: Subject, heads: HeadMap) -> float:
    length = subject.curve_length
    rows = cases.text_rows(subject.tokenizer, subject.held_out, length, max(1, subject.count // 4))
    total = 0.0
    with masked_heads(subject.model, heads, sink=SINK, recent=RECENT), torch.inference_mode():
        for part in np.array_split(rows, -(-len(rows) // subject.at_once(length))):
            ids = torch.from_numpy(part).to(subject.model.device)
            logits = subject.model(ids, use_cache=False).logits[:, :-1].float()
            total += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())) * len(part)
    return round(total / len(rows), 5)


def drafting(subject: Subject) -> dict[str, Any]:
    """Drafts of the MTP layer and of n-gram lookup, 1 to 4 a round, on held-out text and, where learnt, on thinking."""
    config = subject.config
    prompts: dict[str, list[list[int]]] = {}
    if "sums" in config.tasks:
        sums = cases.sum_cases(subject.count, config.operands, config.most_digits, SEEDS["sums"] + 1)
        prompts["thinking"] = [sum_prompt(subject.tokenizer, one, True) for one in sums]
    prompts["text"] = cases.text_rows(subject.tokenizer, subject.held_out, 256, subject.count).tolist()
    found: dict[str, Any] = {}
    for kind, asked in prompts.items():
        for drafts in range(1, MOST_DRAFTS + 1):
            for name, drafter in (("mtp", MtpDrafter(subject.mtp, stop=drafts)), ("lookup", LookupDrafter(drafts))):
                made = generate(subject.model, asked, drafter=drafter, temperature=0, max_new_tokens=DRAFTED)
                found.setdefault(kind, {}).setdefault(name, {})[str(drafts)] = _acceptance(made.statistics)
    return found


def _acceptance(statistics: Statistics) -> dict[str, Any]:
    """conditional: accepted of those tested, by position; of_rounds: accepted of all rounds, also without a draft."""
    pairs = list(zip(statistics.accepted, statistics.reached, strict=True))
    return {
        "conditional": [round(a / r, 4) if r else None for a, r in pairs],
        "of_rounds": [round(a / statistics.rounds, 4) for a, _ in pairs],
        "tokens_per_verification": round(statistics.tokens_per_verification, 4),
    }


def curves(subject: Subject) -> dict[str, Any]:
    """Passkeys found and losses by how many layers stream, by calibration method: whole layers, or as many heads."""
    length, layers = subject.curve_length, subject.model.config.num_hidden_layers
    asked = subject.curve_cases()
    prompts = [
        prompt
        for i, n in enumerate((length // 2, length))
        for prompt in passkey_prompts(subject.tokenizer, n, count=8, seed=SEEDS["calibration"] + 100 * i)
    ]
    measured: dict[bytes, dict[str, float]] = {}

    def measure(heads: HeadMap) -> dict[str, float]:
        if (key := heads.tobytes()) not in measured:
            measured[key] = {**_answered(subject, asked, heads, length), "text_loss": text_loss(subject, heads)}
        return measured[key]

    found: dict[str, Any] = {"length": length, "layers": layers, "scores": {}, "layer": {}, "head": {}}
    for method in METHODS:
        scores = calibrate(
            subject.model,
            method=method,
            sink=SINK,
            recent=RECENT,
            prompts=prompts,
            batch_size=min(4, subject.at_once(length)),
        )
        found["scores"][method] = scores.values.tolist()
        for streaming in subject.curve_counts:
            plan = make_plan(scores, num_full=layers - streaming)
            whole = every_head([not plan.is_streaming(i) for i in range(layers)], scores.num_kv_heads)
            found["layer"].setdefault(method, {})[str(streaming)] = measure(whole)
            found["head"].setdefault(method, {})[str(streaming)] = measure(head_map(scores, layers - streaming))
    found["full"], found["streaming"] = (measure(heads) for heads in subject.maps().values())
    return found


def random_layers(subject: Subject) -> dict[str, Any]:
    """The curves' points with layers drawn at random: means over independent draws, each on its share of the cases.

    draws: of each point, which layers are full and how many passkeys they found
    """
    shape, asked = subject.maps()["full"].shape, subject.curve_cases()
    where = f"{subject.model.device.type}, {str(subject.model.dtype).removeprefix('torch.')}"
    found: dict[str, Any] = {"where": where}
    for streaming in subject.curve_counts:
        draws = []
        for draw in range(min(DRAWS, len(asked))):
            full = np.random.default_rng([streaming, draw]).permutation(shape[0]) >= streaming
            heads = every_head(full, shape[1])
            measured = _answered(subject, asked[draw::DRAWS], heads, subject.curve_length)
            draws.append({"full": np.flatnonzero(full).tolist(), **measured})
        means = {name: round(float(np.mean([d[name] for d in draws])), 5) for name in ("right", "loss")}
        found[str(streaming)] = {**means, "draws": draws}
    return found
