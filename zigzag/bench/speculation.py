"""The suite `speculation`: decoding with and without drafts, side by side, on prompts that every Python has."""

import argparse as _text_source
import inspect
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from zigzag.bench.stock import greedy
from zigzag.files.markdown import table
from zigzag.generation.drafting import Drafter, LookupDrafter, streaming_drafter
from zigzag.generation.generate import generate
from zigzag.generation.statistics import Statistics
from zigzag.models.decoder import CausalLM
from zigzag.running.model_layers import layers_of

TASKS = {
    "edit": "Print this code again with every docstring removed.\n\n",
    "summary": "Summarise in a few sentences what this code does.\n\n",
    "continue": "",
}
FORMAT = "zigzag-bench"
COLUMNS = (
    "task", "tokens", "T", "method", "seconds", "tokens/s", "accepted", "tokens/verification", "loop, ms", "as plain",
)  # fmt: skip
KNOWN = {  # of zigzag's loop, and how the page writes it
    "tokens_per_second": ".1f",
    "acceptance": ".0%",
    "tokens_per_verification": ".2f",
    "loop_ms_per_round": ".2f",
}
LENGTHS, TEMPERATURES = (1000, 2000, 4000), (0.0, 1.0)
DRAFTS, LOOKUP_DRAFTS, SINK, RECENT = 4, 10, 16, 240
Run = Callable[[list[int], int], tuple[list[int], Statistics | None]]  # of a prompt and the number of new tokens


@dataclass(frozen=True)
class Measurement:
    """One generation: `seconds` from the call to the last token, prefill included; None: not known of others.

    equals_plain: at temperature 0, whether the tokens are those of "plain", which runs first
    """

    task: str
    length: int
    temperature: float
    method: str
    new_tokens: int
    seconds: float
    equals_plain: bool | None = None
    acceptance: float | None = None
    tokens_per_verification: float | None = None
    loop_ms_per_round: float | None = None
    tokens_per_second: float | None = None


def prompt_ids(tokenizer: Any, task: str, length: int) -> list[int]:
    """A prompt of exactly `length` tokens around the source code of Python's argparse module."""
    code: list[int] = tokenizer(inspect.getsource(_text_source), add_special_tokens=False).input_ids
    if task == "continue":
        return code[:length]
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": f"{TASKS[task]}@@@@"}], tokenize=False, add_generation_prompt=True
    )
    before, after = (tokenizer(part, add_special_tokens=False).input_ids for part in whole.split("@@@@"))
    return [*before, *code[: length - len(before) - len(after)], *after]


def methods(model: CausalLM, temperature: float) -> dict[str, Run]:
    """What is compared: name -> what generates, and says how it went where that is known."""

    def ours(drafter: Callable[[], Drafter | None], rule: str = "residual") -> Run:
        def run(ids: list[int], new_tokens: int) -> tuple[list[int], Statistics | None]:
            result = generate(
                model,
                [ids],
                drafter=drafter(),
                rule=rule,
                temperature=temperature,
                max_new_tokens=new_tokens,
                eos_token_id=[],
            )
            return result.new_tokens[0], result.statistics

        return run

    def theirs(**options: Any) -> Run:
        return lambda ids, new_tokens: (greedy(model, ids, new_tokens, **options), None)

    layers = len(layers_of(model).full)
    found: dict[str, Run] = {
        "plain": ours(lambda: None),
        "lookup": ours(lambda: LookupDrafter(LOOKUP_DRAFTS)),
        "streaming": ours(lambda: streaming_drafter(layers, sink=SINK, recent=RECENT, stop=DRAFTS)),
    }
    if temperature == 0:
        found["transformers plain"] = theirs()
        found["transformers lookup"] = theirs(prompt_lookup_num_tokens=LOOKUP_DRAFTS)
    else:
        found["streaming, block rule"] = ours(
            lambda: streaming_drafter(layers, sink=SINK, recent=RECENT, stop=DRAFTS), "block"
        )
    return found


def run(
    model: CausalLM,
    tokenizer: Any,
    *,
    lengths: tuple[int, ...] = LENGTHS,
    tasks: tuple[str, ...] = tuple(TASKS),
    new_tokens: int = 64,
) -> Iterator[Measurement]:
    """Measure everything once, after one short run of each method that is not counted."""
    for temperature in TEMPERATURES:
        for method in methods(model, temperature).values():
            method(prompt_ids(tokenizer, "edit", 100), 4)
    for length in lengths:
        for task in tasks:
            ids = prompt_ids(tokenizer, task, length)
            for temperature in TEMPERATURES:
                plain: list[int] | None = None
                for name, method in methods(model, temperature).items():
                    begin = time.perf_counter()
                    new, numbers = method(ids, new_tokens)
                    seconds = time.perf_counter() - begin
                    plain = new if plain is None else plain
                    same = new == plain if temperature == 0 else None
                    yield Measurement(task, length, temperature, name, len(new), seconds, same, *_rates(numbers))


def _rates(numbers: Statistics | None) -> tuple[float | None, ...]:
    if numbers is None:
        return (None,) * 4
    loop = None if numbers.onward else 1000 * numbers.seconds_rest / max(1, numbers.rounds)
    return numbers.acceptance, numbers.tokens_per_verification, loop, numbers.tokens_per_second


def conditions(model: CausalLM) -> dict[str, Any]:
    """What the numbers depend on."""
    import transformers

    device = torch.cuda.get_device_name() if model.device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return {
        "model": model.config._name_or_path,
        "dtype": str(model.dtype),
        "device": device,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "drafts": DRAFTS,
        "lookup_drafts": LOOKUP_DRAFTS,
        "sink": SINK,
        "recent": RECENT,
    }


def as_json(model: CausalLM, measured: list[Measurement]) -> dict[str, Any]:
    return {"format": FORMAT, "version": 1, "conditions": conditions(model), "rows": [asdict(m) for m in measured]}


def page(content: dict[str, Any], command: str) -> str:
    """The numbers as a page, every row that was measured."""
    facts = content["conditions"]
    lines = [
        f"# Decoding with and without drafts: {facts['device']}",
        "",
        f"Made by `{command}`; nothing is typed by hand. {facts['model']}, {facts['dtype']}, torch {facts['torch']}, "
        f"transformers {facts['transformers']}, batch 1, each row measured once.",
        "",
        f"*Lookup* drafts up to {facts['lookup_drafts']} tokens (transformers' own likewise), *streaming* drafts "
        f"{facts['drafts']} with all layers streaming (sink {facts['sink']}, recent {facts['recent']}) and verifies "
        "with full attention. *Seconds* is the whole call with its prefill; *tokens/s* counts after the prefill; "
        "*loop* is what is neither drafting nor a forward, per verification.",
        "",
        *table(COLUMNS, map(_cells, content["rows"])),
    ]
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any]) -> list[str]:
    asked = [row["task"], f"{row['length']:,}", f"{row['temperature']:g}", row["method"], f"{row['seconds']:.2f}"]
    known = ["" if row[key] is None else format(row[key], form) for key, form in KNOWN.items()]
    return [*asked, *known, {None: "", True: "yes", False: "no"}[row["equals_plain"]]]
