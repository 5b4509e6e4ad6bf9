"""What a training run is: sizes of the model, stages, optimizer, data. Read from TOML, checked when it is read."""

import math
import tomllib
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from zigzag.measuring.tasks import TASKS as PROMPTS
from zigzag.reference.checks import as_real, as_whole
from zigzag.reference.errors import ArgumentError

# Of the tasks of `zigzag.measuring.tasks`; passkeys have documents of their own, whose held-out keys these would show.
ASKED = tuple(name for name in PROMPTS if name != "passkeys")
# What a token to be predicted is part of; a token's kind decides the weight of its loss.
KINDS = ("prompt", "text", "passkey", "recall", "copy", "thinking", "direct", *ASKED)
TASKS = ("text", "passkey", "recall", "copy", "sums", *ASKED)  # what a row may be made of
CONTENT = "glm"  # the table that is the content of config.json


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of the run in which row length, RoPE base, loss weights and mixture stay.

    length, rows: tokens of a row, rows of a step
    steps: how many, where no time is given; with a time as many as fit into `share` of it
    share: of the schedule (learning rate) and of the time
    bias_rate: of the loss-free balancing; mtp_weight: of the MTP layer's loss, the mean over its depths
    mix: share of the rows by task
    """

    name: str
    length: int
    rows: int
    steps: int
    share: float
    rope_theta: float
    mtp_weight: float
    bias_rate: float
    mix: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """A whole run. Two equal configs on the same Python installation and device make the same model.

    name: of the model, for its card
    vocabulary: most tokens of the byte-level BPE
    corpus_bytes: text taken from the Python installation at most; tokenizer_bytes: of it, what the BPE is trained on
    learning_rate: at its peak, for Muon and AdamW alike; warmup: share of the schedule; final: share of the peak
    balance_weight: of the sequence-wise balance loss; clip: most norm of the gradient
    mtp_depth: how many tokens the one MTP layer is trained to draft in a row, each on its state of the one before
    loss_weights: by kind of token, 1 where not named
    operands, least_digits, most_digits: of the sums; may be left out where no stage has any
    log_every, save_every: steps between lines of the log and between checkpoints
    glm: the content of config.json, without vocab_size and what the stages decide
    """

    name: str
    seed: int
    vocabulary: int
    corpus_bytes: int
    tokenizer_bytes: int
    learning_rate: float
    warmup: float
    final: float
    weight_decay: float
    momentum: float
    balance_weight: float
    clip: float
    mtp_depth: int
    operands: int = 4
    least_digits: int = 3
    most_digits: int = 5
    log_every: int
    save_every: int
    loss_weights: dict[str, float]
    glm: dict[str, Any]
    stages: tuple[Stage, ...]

    @property
    def tasks(self) -> frozenset[str]:
        """What any of the stages has rows of."""
        return frozenset(task for stage in self.stages for task, share in stage.mix.items() if share > 0)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def named(name: str | Path) -> Path:
    """The file of a configuration: a path, or the name of one that ships with zigzag: "tiny-glm", "retriever"."""
    shipped = Path(__file__).parent / f"{name}.toml"
    return shipped if shipped.is_file() else Path(name)


def read_config(path: str | Path) -> TrainingConfig:
    """The run in a TOML file.

    Raises ArgumentError if the file cannot be read, for keys that are missing or unknown, and for values out of range.
    """
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArgumentError(
            "training: CONFIG must be a TOML file or the name of a shipped one (tiny-glm, retriever), "
            f"got {path}: {error}"
        ) from error
    return from_dict(content)


def from_dict(content: dict[str, Any]) -> TrainingConfig:
    """The run in a dictionary, as `TrainingConfig.as_dict` gives it; ArgumentError as in `read_config`."""
    stages = content.get("stages")
    if not isinstance(stages, list | tuple) or not stages:
        raise ArgumentError("training config: at least one [[stages]] is needed")
    made = tuple(_made(Stage, stage, f"stages[{i}]") for i, stage in enumerate(stages))
    config: TrainingConfig = _made(TrainingConfig, {**content, "stages": made}, "the top level")
    _check(config)
    return config


def _made(kind: type, content: dict[str, Any], where: str) -> Any:
    known = {field.name: field for field in fields(kind)}
    missing = [name for name, field in known.items() if name not in content and field.default is MISSING]
    unknown = sorted(content.keys() - known.keys())
    if missing or unknown:
        raise ArgumentError(
            f"training config: {where}: missing {', '.join(missing) or 'nothing'}; unknown {', '.join(unknown) or '-'}"
        )
    plain = dict(content)
    for name, field in known.items():
        if field.type in (int, float) and name in content:
            number = (as_whole if field.type is int else as_real)(content[name])
            if number is None or not 0 <= number < math.inf:
                raise ArgumentError(
                    f"training config: {where}: {name} must be a number, 0 or more, got {content[name]!r}"
                )
            plain[name] = number
    return kind(**plain)


def _check(config: TrainingConfig) -> None:
    if not isinstance(config.name, str) or not config.name:
        raise ArgumentError(f"training config: name must be a word or more, got {config.name!r}")
    _check_names("loss_weights", config.loss_weights, KINDS)
    for stage in config.stages:
        _check_names(f"mix of stage {stage.name}", stage.mix, TASKS)
        if not sum(stage.mix.values()) > 0:
            raise ArgumentError(f"training config: mix of stage {stage.name} must hold a share above 0")
        if min(stage.length, stage.rows, stage.steps) < 1 or not stage.share > 0:
            raise ArgumentError(f"training config: length, rows, steps and share of stage {stage.name} must be above 0")
    if not 1 <= config.least_digits <= config.most_digits <= 9 or config.operands < 2:
        raise ArgumentError(
            f"training config: sums need 2 or more operands of 1 to 9 digits, got {config.operands} of "
            f"{config.least_digits} to {config.most_digits}"
        )
    if min(config.log_every, config.save_every, config.mtp_depth) < 1:
        raise ArgumentError("training config: log_every, save_every and mtp_depth must be at least 1")


def _check_names(what: str, table: dict[str, float], known: tuple[str, ...]) -> None:
    wrong = [name for name, value in table.items() if name not in known or not value >= 0]
    if wrong:
        raise ArgumentError(
            f"training config: {what}: names must be of {', '.join(known)}, values 0 or more, got {', '.join(wrong)}"
        )
