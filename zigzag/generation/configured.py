"""The logits processors that a generation_config asks for: transformers' own classes, in transformers' order."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation import logits_process as made

from zigzag.generation.settings import is_set
from zigzag.reference.errors import ArgumentError


@dataclass(frozen=True)
class Place:
    """Where a processor will work.

    tokens: the row's prompt; end: most tokens of the row; eos: the tokens that end it, None for none
    """

    tokens: list[int]
    end: int
    eos: list[int] | None
    device: Any

    @classmethod
    def of(cls, prompt: list[int], end: int, eos: Collection[int], device: Any) -> "Place":
        return cls(prompt.copy(), end, sorted(eos) or None, device)  # the row's own list grows

    @cached_property
    def prompt(self) -> Any:
        """[1, T] on the device, made where a processor asks for it: of a long prompt that takes milliseconds."""
        return torch.tensor([self.tokens], device=self.device)

    @property
    def start(self) -> int:
        """Tokens of the prompt."""
        return len(self.tokens)


Make = Callable[[Any, Place], Any]

# Of each field: the value that asks for nothing, and the processor of a row; None where there is no token to act on.
MAKERS: dict[str, tuple[Any, Make]] = {
    "sequence_bias": (None, lambda value, at: made.SequenceBiasLogitsProcessor(value)),
    "encoder_repetition_penalty": (
        1,
        lambda value, at: made.EncoderRepetitionPenaltyLogitsProcessor(float(value), at.prompt),
    ),
    "repetition_penalty": (1, lambda value, at: made.RepetitionPenaltyLogitsProcessor(float(value))),
    "no_repeat_ngram_size": (0, lambda value, at: made.NoRepeatNGramLogitsProcessor(value)),
    "encoder_no_repeat_ngram_size": (0, lambda value, at: made.EncoderNoRepeatNGramLogitsProcessor(value, at.prompt)),
    "bad_words_ids": (None, lambda value, at: made.NoBadWordsLogitsProcessor(value, at.eos)),
    "min_length": (0, lambda value, at: at.eos and made.MinLengthLogitsProcessor(value, at.eos, device=at.device)),
    "min_new_tokens": (
        0,
        lambda value, at: at.eos and made.MinNewTokensLengthLogitsProcessor(at.start, value, at.eos, device=at.device),
    ),
    "forced_bos_token_id": (None, lambda value, at: made.ForcedBOSTokenLogitsProcessor(value)),
    "forced_eos_token_id": (
        None,
        lambda value, at: made.ForcedEOSTokenLogitsProcessor(at.end, value, device=at.device),
    ),
    "remove_invalid_values": (False, lambda value, at: made.InfNanRemoveLogitsProcessor()),
    "exponential_decay_length_penalty": (
        None,
        lambda value, at: at.eos and made.ExponentialDecayLengthPenalty(tuple(value), at.eos, at.start),
    ),
    "suppress_tokens": (None, lambda value, at: made.SuppressTokensLogitsProcessor(value, device=at.device)),
    "begin_suppress_tokens": (
        None,
        lambda value, at: made.SuppressTokensAtBeginLogitsProcessor(value, at.start, device=at.device),
    ),
}
OF_ALL_ROWS = ("sequence_bias", "bad_words_ids", "suppress_tokens")  # with tables over the vocabulary: made once


def configured(config: GenerationConfig, places: list[Place], vocabulary: int) -> list[list[Any]]:
    """Of each row the processors that `config` asks for. Each is tried, so that what it cannot do is known before."""
    rows: list[list[Any]] = [[] for _ in places]
    for name, (neutral, make) in MAKERS.items():
        value = getattr(config, name, None)
        if not is_set(value) or value == neutral:
            continue
        if name == "min_length" and config.min_new_tokens is not None:
            continue  # as in transformers the number of new tokens goes before
        try:
            processors = [make(value, place) for place in places[: 1 if name in OF_ALL_ROWS else None]]
            if processors[0]:
                processors[0](places[0].prompt, torch.zeros(1, vocabulary, device=places[0].device))
        except (ValueError, TypeError, IndexError) as error:
            raise ArgumentError(f"generate: generation_config says {name}={value!r}: {error}") from error
        for row, processor in zip(rows, processors * (len(rows) // len(processors)), strict=True):
            if processor:
                row.append(processor)
    return rows
