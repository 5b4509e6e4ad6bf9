"""Answers of a model to prompts of a benchmark: what a task asks of generation, honoured by `generate` or refused."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import GenerationConfig

from zigzag.chat.thinking import thinking_token_ids
from zigzag.generation.generate import generate
from zigzag.generation.settings import check_fields
from zigzag.models.decoder import Decoder
from zigzag.plans.heads import Plan
from zigzag.plans.opened import opened
from zigzag.reference.checks import check_count, check_sampling
from zigzag.reference.errors import ArgumentError

NEW_TOKENS = 256  # where a task says nothing, as lm-eval
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # one and the same

Advance = Callable[[int], object]


@dataclass(frozen=True)
class Asked:
    """What a task asks of generation.

    stop: strings that end an answer and do not belong to it; max_new_tokens: of an answer
    temperature, top_k, top_p, min_p: as of `generate`
    config: of transformers, with what else is asked for
    """

    stop: tuple[str, ...]
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    config: GenerationConfig

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Asked":
        """Of lm-eval's generation_kwargs; ArgumentError for what cannot be honoured, by name.

        As there, decoding is greedy unless `do_sample` is true or, where it is not given, a temperature above 0 is.
        """
        rest = {name: value for name, value in given.items() if value is not None}
        stop = _strings(rest.pop("until", []))
        lengths = {name: rest.pop(name) for name in LENGTHS if name in rest}
        if len(set(lengths.values())) > 1:
            raise ArgumentError(f"eval: the task asks for several lengths of an answer, {lengths}; give one")
        most = next(iter(lengths.values()), NEW_TOKENS)
        temperature = _temperature(rest.pop("do_sample", None), rest.pop("temperature", None))
        sampling = {name: rest.pop(name, value) for name, value in (("top_k", 0), ("top_p", 1.0), ("min_p", 0.0))}
        numbers = check_sampling("eval", temperature, **sampling)
        if "max_length" in rest:
            raise ArgumentError("eval: the task asks for max_length, which counts its prompt, too; give max_gen_toks")
        try:
            config = GenerationConfig(**rest)
        except (TypeError, ValueError) as error:
            raise ArgumentError(f"eval: the task asks for {rest}: {error}") from error
        check_fields(config, numbers["temperature"])
        return cls(stop, check_count("eval", "max_gen_toks", most), **numbers, config=config)


def _strings(until: Any) -> tuple[str, ...]:
    strings = [until] if isinstance(until, str) else until
    if not isinstance(strings, Sequence) or not all(isinstance(each, str) and each for each in strings):
        raise ArgumentError(f"eval: until must be a string, or several, none of them empty, got {until!r}")
    return tuple(dict.fromkeys(strings))


def _temperature(do_sample: Any, temperature: Any) -> Any:
    if do_sample not in (None, True, False):
        raise ArgumentError(f"eval: do_sample must be true or false, got {do_sample!r}")
    if do_sample and temperature == 0:
        raise ArgumentError("eval: the task asks for do_sample=true and temperature=0; give one or the other")
    if do_sample is None:
        return 0.0 if temperature is None else temperature
    return (1.0 if temperature is None else temperature) if do_sample else 0.0


def answers(
    model: Decoder,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    asked: Sequence[Asked],
    *,
    plan: Plan | str | Path | None = None,
    batch_size: int = 1,
    seed: int = 0,
    thinking: bool | None = None,
    advance: Advance | None = None,
) -> list[str]:
    """The model's answer to each prompt of tokens, by `generate`, which is plain decoding under the plan.

    asked: of each prompt; those that ask for the same are answered together, at most `batch_size` at once
    seed: of the first prompt, seed + 1 of the second, ...: batches change no answer but by rounding
    thinking: whether the prompts ask for thinking: True: an answer is what follows its first `</think>`, and stop
        strings count there alone; without one it is empty; False: it begins behind the blanks of the template; None:
        it is all that the model writes
    advance: called with the number of answers that are done

    Raises ArgumentError, PlanError and ModelError as `generate`, before any answer is made where the reason is one of
    the arguments.
    """
    check_count("answers", "batch_size", batch_size)
    if len(prompts) != len(asked):
        raise ArgumentError(f"answers: what is asked of each prompt is needed, got {len(asked)} for {len(prompts)}")
    plan = opened(plan)
    closing = thinking_token_ids(tokenizer)[1] if thinking else None
    found = [""] * len(prompts)
    for batch in _batches(prompts, asked, batch_size):
        wanted, rows = asked[batch[0]], [list(prompts[place]) for place in batch]
        ends = None if thinking is None else [InAnswer(wanted.stop, tokenizer, [*map(len, rows)], closing)]
        result = generate(
            model,
            rows,
            plan=plan,
            max_new_tokens=wanted.max_new_tokens,
            temperature=wanted.temperature,
            top_k=wanted.top_k,
            top_p=wanted.top_p,
            min_p=wanted.min_p,
            stop=wanted.stop if ends is None else [],
            stopping_criteria=ends,
            generation_config=wanted.config,
            tokenizer=tokenizer,
            seed=[seed + place for place in batch],
        )
        for place, tokens, reason in zip(batch, result.new_tokens, result.finish_reasons, strict=True):
            tokens = tokens[:-1] if reason == "eos" else tokens
            whole = thinking is None
            text = tokenizer.decode(tokens, skip_special_tokens=True) if whole else said(tokenizer, tokens, closing)
            found[place] = until(text, wanted.stop)
        if advance is not None:
            advance(len(batch))
    return found


def _batches(prompts: Sequence[Sequence[int]], asked: Sequence[Asked], size: int) -> list[list[int]]:
    """Places of prompts that ask for the same, the longest first: what is too large fails at once."""
    kinds: dict[str, list[int]] = {}
    for place in sorted(range(len(prompts)), key=lambda place: -len(prompts[place])):
        kinds.setdefault(_key(asked[place]), []).append(place)
    return [kind[begin : begin + size] for kind in kinds.values() for begin in range(0, len(kind), size)]


def _key(asked: Asked) -> str:
    """The same for those that ask for the same."""
    return json.dumps(vars(asked) | {"config": asked.config.to_dict()}, default=str, sort_keys=True)


class InAnswer:
    """Stopping criterion of transformers' kind: stop strings that count in the answer of a chat alone.

    starts: tokens of each row's prompt; closing: as of `said`
    """

    def __init__(self, stop: Sequence[str], tokenizer: Any, starts: Sequence[int], closing: int | None) -> None:
        self.stop, self.tokenizer, self.starts, self.closing = stop, tokenizer, starts, closing

    def __call__(self, input_ids: Tensor, scores: Any, row: int) -> bool:
        text = said(self.tokenizer, input_ids[0, self.starts[row] :].tolist(), self.closing)
        return any(string in text for string in self.stop)


def said(tokenizer: Any, tokens: list[int], closing: int | None) -> str:
    """The answer of a chat in what a model wrote: what follows the first `closing` token, if there must be one.

    Without the blanks that templates have between thinking and answer.
    """
    if closing is not None:
        tokens = tokens[tokens.index(closing) + 1 :] if closing in tokens else []
    return str(tokenizer.decode(tokens, skip_special_tokens=True)).lstrip()


def until(text: str, stop: Sequence[str]) -> str:
    """What stands before the first of the stop strings."""
    ends = [end for string in stop if (end := text.find(string)) >= 0]
    return text[: min(ends, default=len(text))]


def check_lengths(prompts: Sequence[Sequence[int]], asked: Sequence[Asked], most: int) -> None:
    """ArgumentError unless every prompt with its longest answer fits into `most` tokens."""
    for prompt, wanted in zip(prompts, asked, strict=True):
        if len(prompt) + wanted.max_new_tokens > most:
            raise ArgumentError(
                f"eval: a prompt of {len(prompt)} tokens and an answer of up to {wanted.max_new_tokens} do not fit "
                f"into the {most} of the model; give fewer --num-fewshot, --gen-kwargs max_gen_toks=N, or, where "
                f"the model can do more, --max-length"
            )
