"""Logits processors as `generate` asks them: which row, how often, about what (docs/generation.md)."""

import inspect
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zigzag.reference.errors import ArgumentError

OF_TRANSFORMERS = "transformers.generation.logits_process"
WITH_STATE = {"SynthIDTextWatermarkLogitsProcessor", "WhisperNoSpeechDetection", "DiaEOSDelayPatternLogitsProcessor"}
SIMPLE = (bool, int, float, str, bytes, tuple, type(None))
IMPOSSIBLE = {  # of transformers' classes: why they cannot work on one row's text
    "ClassifierFreeGuidanceLogitsProcessor": "it needs two rows of logits for each row of text",
    "UnbatchedClassifierFreeGuidanceLogitsProcessor": "it runs the model itself in the middle of generate",
    "EncoderRepetitionPenaltyLogitsProcessor": "it holds a batch of prompts; set encoder_repetition_penalty in "
    "generation_config, which counts for each row",
    "EncoderNoRepeatNGramLogitsProcessor": "it holds a batch of prompts; set encoder_no_repeat_ngram_size in "
    "generation_config, which counts for each row",
}


class Asked:
    """One processor and how it is asked.

    drafts: whether about drafts, too; rows: how many rows there are
    """

    def __init__(self, processor: Any, *, drafts: bool, rows: int) -> None:
        self.processor, self.name = processor, type(processor).__name__
        kinds = _kinds(processor)
        self.takes_row = takes_row("logits_processor", processor)
        self.constrains = "PrefixConstrainedLogitsProcessor" in kinds
        self.why = ""  # a state would go wrong; empty: it would not
        if drafts:
            self.why = "drafts ask about texts that may never be committed; leave out drafter="
        elif rows > 1 and not self.takes_row:
            self.why = "several rows are asked in turn; give one row, or take a parameter `row`"
        stateful = getattr(processor, "stateful", True if kinds & WITH_STATE else None)
        if stateful and self.why:
            raise ArgumentError(f"generate: {self.name} keeps a state, but {self.why}")
        foreign = type(processor).__module__ != OF_TRANSFORMERS
        self.watched = bool(self.why) and stateful is None and foreign

    def __call__(self, row: int, tokens: Tensor, logits: Tensor) -> Tensor:
        """The processed logits [1, V] after `tokens` [1, T]."""
        before = attributes(self.processor) if self.watched else {}
        processor = _of_row(self.processor, row) if self.constrains else self.processor
        out = processor(tokens, logits, row=row) if self.takes_row else processor(tokens, logits)
        if not isinstance(out, Tensor) or out.shape != logits.shape:
            found = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ArgumentError(f"generate: {self.name} must return logits {list(logits.shape)}, got {found}")
        if self.watched and (names := changed(before, attributes(self.processor))):
            raise ArgumentError(
                f"generate: {self.name} changed its {', '.join(names)} when it was asked, so it keeps a state, but "
                f"{self.why}. If its answers depend on its arguments alone, let it say stateful = False"
            )
        return out


class Processors:
    """The processors of each row, in order.

    own: the user's; configured: of each row, those of generation_config. As in transformers one of the user's takes the
    place of a configured one of its type.
    """

    def __init__(self, own: Sequence[Any], configured: Sequence[Sequence[Any]], *, drafts: bool) -> None:
        for processor in own:
            _check_possible(processor)
        asked = [Asked(processor, drafts=drafts, rows=len(configured)) for processor in own]
        self.rows: list[list[Asked]] = []
        for row in configured:
            merged: list[Asked] = []
            for default in row:
                same = [one for one in asked if type(one.processor) is type(default)]
                merged.append(same[0] if same else Asked(default, drafts=False, rows=1))
            self.rows.append(merged + [one for one in asked if one not in merged])

    def __bool__(self) -> bool:
        return any(self.rows)

    def __call__(self, row: int, tokens: Sequence[int], logits: Tensor) -> Tensor:
        """The processed logits [1, V] of `logits` [1, V] after the tokens of a row: float32, as transformers'."""
        logits = logits.to(torch.float32, copy=True)
        text = torch.tensor([tokens], device=logits.device)
        for asked in self.rows[row]:
            logits = asked(row, text, logits)
        return logits


def _kinds(processor: Any) -> set[str]:
    """Names of the classes of transformers that it is of."""
    return {kind.__name__ for kind in type(processor).__mro__ if kind.__module__ == OF_TRANSFORMERS}


def _check_possible(processor: Any) -> None:
    for kind in _kinds(processor) & IMPOSSIBLE.keys():
        raise ArgumentError(f"generate: {kind} cannot be a logits_processor here: {IMPOSSIBLE[kind]}")
    if isinstance(getattr(processor, "prompt_ignore_length", None), Tensor):
        raise ArgumentError(
            f"generate: {type(processor).__name__} holds a prompt_ignore_length for each row, but sees one row at a "
            f"time, without padding; give one number, or none"
        )


def takes_row(what: str, one: Any) -> bool:
    """Whether a callable has a parameter `row`; ArgumentError if two arguments, and that one, are not enough for it."""
    try:
        signature = inspect.signature(one)
    except ValueError:  # of a builtin
        return False
    named = "row" in signature.parameters
    try:
        signature.bind(None, None, **({"row": 0} if named else {}))
    except TypeError as error:
        raise ArgumentError(f"generate: {what} is called with (input_ids, scores): {one!r}: {error}") from error
    return named


def attributes(one: Any) -> dict[str, tuple[Any, Any]]:
    """Of an object each attribute, and of those that can be changed in place what they hold."""
    return {name: (value, _held(value)) for name, value in getattr(one, "__dict__", {}).items()}


def changed(before: dict[str, tuple[Any, Any]], after: dict[str, tuple[Any, Any]]) -> list[str]:
    """The names of attributes that came, went, or are not what they were."""
    names = [name for name in before if name not in after] + [name for name in after if name not in before]
    both = [name for name in before if name in after]
    return names + [name for name in both if not _same(before[name], after[name])]


def _held(value: Any) -> Any:
    if isinstance(value, list | dict | set | deque):
        return value.copy()
    return value._version if isinstance(value, Tensor) and not value.is_inference() else None


def _same(one: tuple[Any, Any], other: tuple[Any, Any]) -> bool:
    (was, held), (now, holds) = one, other
    if was is not now:
        return isinstance(was, SIMPLE) and type(was) is type(now) and was == now
    if isinstance(held, list | deque):
        return len(held) == len(holds) and all(a is b for a, b in zip(held, holds, strict=True))
    if isinstance(held, dict):
        return held.keys() == holds.keys() and all(held[key] is holds[key] for key in held)
    return bool(held == holds)


def _of_row(processor: Any, row: int) -> Any:
    """A PrefixConstrainedLogitsProcessor that tells its function the row that it works on."""
    function = getattr(processor, "_prefix_allowed_tokens_fn", None)
    if function is None:
        raise ArgumentError(f"generate: {type(processor).__name__} does not show its function in this transformers")
    return type(processor)(lambda _, tokens: function(row, tokens), 1)
