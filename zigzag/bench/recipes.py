"""The suite `recipes`: every system of the survey that runs for a model, on the same texts, in one loop, in one run.

Beside them plain decoding, and transformers' own with and without its assistants.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from zigzag.bench import report
from zigzag.bench.speculation import prompt_ids
from zigzag.bench.stock import greedy
from zigzag.chat.thinking import chat_prompt
from zigzag.files.markdown import light_and_dark, table
from zigzag.generation.drafting import AdaptiveDrafter, LookupDrafter, MtpDrafter, OnlineDrafter, drafter_of
from zigzag.generation.drafting.drawn import DrawnDrafter
from zigzag.generation.generate import generate
from zigzag.generation.recipes import RECIPES, arguments
from zigzag.generation.statistics import Statistics
from zigzag.models.draft_heads.files import load_head
from zigzag.models.draft_heads.kinds import KINDS
from zigzag.reference.errors import ArgumentError, ModelError

FORMAT, VERSION = "zigzag-recipes-bench", 1
TEXTS = ("continue", "sums", "edit", "summary")
LENGTH = 600  # tokens of a prompt but of a sum's
PLAIN = "plain"
MTP_LENGTHS = (1, 3, 6, 12)
CHAIN_LENGTHS = (3, 6)
THEIRS = 128  # new tokens of transformers' own, of which each costs the same
Made = dict[str, Any]
COLUMNS = (
    "text", "T", "rows", "method", "lossless", "seconds", "over plain", "tokens/verification", "accepted by position",
    "draft/verification", "as plain",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A call: `seconds` in all, prompt included; the median of several.

    as_plain: at temperature 0, whether the tokens are those of plain decoding; None: not asked
    accepted: of drafts that were tested, by position, None where none were; cost: a draft step over a verification
    """

    text: str
    temperature: float
    rows: int
    method: str
    new_tokens: int
    seconds: float
    as_plain: bool | None = None
    tokens_per_verification: float | None = None
    accepted: tuple[float | None, ...] = ()
    cost: float | None = None

    @property
    def key(self) -> str:
        return f"{self.text}, {self.temperature:g}, {self.rows}, {self.method}"


def prompts(tokenizer: Any, text: str, rows: int) -> list[list[int]]:
    """Rows that differ in their first words alone, or in their numbers."""
    if text != "sums":
        whole = prompt_ids(tokenizer, text, LENGTH)
        return [whole[row:] if text == "continue" else whole for row in range(rows)]
    rng = np.random.default_rng(1)
    numbers = rng.integers(1000, 10_000, size=(rows, 4))
    return [_asked(tokenizer, f"What is {'+'.join(map(str, row))}?") for row in numbers]


def _asked(tokenizer: Any, question: str) -> list[int]:
    messages = [{"role": "user", "content": question}]
    try:
        return chat_prompt(tokenizer, messages, thinking=True)
    except ModelError:  # it does not think
        return chat_prompt(tokenizer, messages, thinking=None)


def methods(model: Any, mtp: Any, heads: set[str], skip: tuple[int, ...]) -> dict[str, Callable[[], Made]]:
    """Of each name what makes the arguments of `generate`, anew for each call; those that cannot be are left out."""
    given: Made = {"skip": skip, "mtp_drafter": None}
    found: dict[str, Callable[[], Made]] = {PLAIN: dict}
    for name, recipe in RECIPES.items():
        lacks = {"datastore"} | ({"head", "draft_model"} if recipe.head not in heads and recipe.head else set())
        lacks |= set() if "student" in heads else {"draft_model"}
        if recipe.runs and not lacks & set(recipe.needs) and name != "mtp":
            more = {need: given[need] for need in recipe.needs if need in given}
            found[name] = partial(arguments, name, model, **more)
    for length in MTP_LENGTHS if mtp is not None else ():
        found[f"mtp, {length}"] = partial(_mtp, mtp, length)
    for length in CHAIN_LENGTHS if "eagle" in heads else ():
        found[f"eagle, chain of {length}"] = partial(_chain, model, length)
    found["adaptive"] = partial(_adaptive, model, mtp, heads)
    return found


def _heads(model: Any) -> set[str]:
    found = set()
    for kind in KINDS:
        try:
            load_head(kind, model)
        except ModelError:
            continue
        found.add(kind)
    return found


def _mtp(mtp: Any, length: int) -> Made:
    return {"drafter": MtpDrafter(mtp, stop=length)}


def _chain(model: Any, length: int) -> Made:
    return {"drafter": drafter_of(load_head("eagle", model), length)}


def _adaptive(model: Any, mtp: Any, heads: set[str]) -> Made:
    arms: list[Any] = [(LookupDrafter(10), (3, 10))]
    if mtp is not None:
        arms.append((MtpDrafter(mtp, stop=6), (1, 3, 6)))
    elif "eagle" in heads:
        arms.append((drafter_of(load_head("eagle", model), 4), (2, 4)))
    return {"drafter": AdaptiveDrafter(*arms)}


def theirs(model: Any, heads: set[str]) -> dict[str, Made]:
    """transformers' own: plain, looking up, with the student as its assistant."""
    found: dict[str, Made] = {"transformers plain": {}, "transformers lookup": {"prompt_lookup_num_tokens": 10}}
    if "student" in heads:
        found["transformers assistant"] = {"assistant_model": load_head("student", model)}
    return found


def run(
    model: Any,
    tokenizer: Any,
    mtp: Any = None,
    *,
    temperatures: tuple[float, ...] = (0.0, 1.0),
    batches: tuple[int, ...] = (1, 8),
    new_tokens: int = 128,
    calls: int = 1,
    only: str = "",
    done: Mapping[str, Row] | None = None,
    log: Callable[[str], object] = print,
) -> Iterator[Row]:
    """Each call after a short one, on a GPU the same, that is not counted; those in `done` are left out.

    calls: of each, of which the median counts
    only: what a row's `key` must hold, or several such with | between them
    """
    done = {} if done is None else done
    layers = len(model.get_decoder().layers)
    heads = _heads(model)
    every, others = methods(model, mtp, heads, tuple(range(2, layers - 1, 3))), theirs(model, heads)
    plain: dict[str, list[list[int]]] = {}
    for temperature in temperatures:
        for rows in batches:
            for text in TEXTS:
                for name in (*every, *others):
                    row = Row(text, temperature, rows, name, 0, 0.0)
                    case = f"{text}, {temperature:g}, {rows}"
                    wanted = any(part in row.key for part in only.split("|")) and row.key not in done
                    if name in others and (temperature or rows > 1):
                        continue
                    if not wanted and not (name == PLAIN and case not in plain):
                        continue
                    ids = prompts(tokenizer, text, rows)
                    try:
                        both = every.get(name), others.get(name)
                        made = _timed(
                            model, ids, *both, temperature, new_tokens, calls, keeps=model.device.type == "cuda"
                        )
                    except (ArgumentError, ModelError) as error:
                        log(f"{row.key}: {error}")
                        continue
                    tokens, seconds, numbers = made
                    if name == PLAIN:
                        plain[case] = tokens
                    if not wanted:
                        continue
                    shown = [row[: len(found)] for row, found in zip(plain[case], tokens, strict=True)]
                    same = tokens == shown if temperature == 0 else None
                    yield Row(text, temperature, rows, name, sum(map(len, tokens)), seconds, same, *_said(numbers))


def _timed(
    model: Any,
    ids: list[list[int]],
    ours: Callable[[], Made] | None,
    stock: Made | None,
    temperature: float,
    new: int,
    calls: int = 1,
    *,
    keeps: bool,
) -> tuple[list[list[int]], float, Statistics | None]:
    """(tokens, seconds, statistics) of a call that comes after another.

    keeps: of ours that is the same call, whose cache, emptied, and drafter the second one has, if that remembers no
        text: so kernels are compiled and steps captured, as for whoever calls again and again
    """
    made, cache = None if ours is None else ours(), None

    def call(most: int) -> tuple[list[list[int]], float, Statistics | None]:
        nonlocal made, cache
        if ours is None or made is None:
            begin = time.perf_counter()
            return [greedy(model, ids[0], min(most, THEIRS), **(stock or {}))], time.perf_counter() - begin, None
        if cache is not None:
            cache.reset()
        made = made if keeps and _forgets(made.get("drafter")) else ours()
        more: Made = {"temperature": temperature, "max_new_tokens": most, "eos_token_id": [], "seed": 0}
        begin = time.perf_counter()
        result = generate(model, ids, **made, cache=cache, **more)
        seconds = time.perf_counter() - begin
        cache = result.cache if keeps else None
        return result.new_tokens, seconds, result.statistics

    call(new if keeps and ours is not None else min(new, 12))
    seconds = []
    for _ in range(calls):
        tokens, each, numbers = call(new)
        seconds.append(each)
    return tokens, median(seconds), numbers


def _forgets(drafter: Any) -> bool:
    """Whether a drafter remembers no text; what it has measured it may know."""
    if isinstance(drafter, AdaptiveDrafter):
        return all(map(_forgets, drafter.drafters))
    return isinstance(drafter, DrawnDrafter | LookupDrafter) and not isinstance(drafter, OnlineDrafter)


def _said(numbers: Statistics | None) -> tuple[Any, ...]:
    if numbers is None:
        return None, (), None
    accepted = tuple(round(a, 4) if a == a else None for a in numbers.conditional_acceptance)
    return numbers.tokens_per_verification, accepted, None if numbers.onward else numbers.draft_cost


def conditions(model: Any, command: str) -> Made:
    """What the numbers depend on."""
    import transformers

    facts = report.conditions(model.device, command)
    facts["versions"]["transformers"] = transformers.__version__
    return facts | {"model": model.config._name_or_path, "dtype": str(model.dtype).removeprefix("torch.")}


def as_json(facts: Made, rows: list[Row]) -> Made:
    return {"format": FORMAT, "version": VERSION, "conditions": facts, "rows": [asdict(row) for row in rows]}


def kept(found: Made, facts: Made) -> list[Row]:
    """What an earlier run measured that broke off; ArgumentError for one elsewhere."""
    report.check_resumed(found, facts, FORMAT, VERSION)
    return [Row(**{**row, "accepted": tuple(row["accepted"])}) for row in found["rows"]]


def page(facts: Made, rows: list[Row], picture: str = "") -> str:
    """The numbers as Markdown, fastest first within a text, under a picture of them."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    head = [
        f"# Every recipe on {facts['device']}: {facts['model']}",
        "",
        f"Made by `{facts['command']}` at {facts['commit']}; nothing is typed by hand. {versions}; {facts['dtype']}. "
        f"Prompts of {LENGTH} tokens (a sum's is shorter), each call once (the median of `--calls`), the fastest "
        "first, after a short one that is not counted; on a GPU after the same one, whose cache, emptied, and drafter "
        "it has. *Seconds* is the whole call, its prompt included, and *over plain* the speed over plain decoding's "
        f"here, a token; transformers' own give {THEIRS} tokens at most. *Accepted*: drafts, or levels "
        "of a tree, over those that were tested. Heads are those that `zigzag.load_head` gives; the draft model is the "
        "head `student`.",
        "",
    ]
    cases: dict[tuple[float, int, str], list[Row]] = {}
    for row in rows:
        cases.setdefault((row.temperature, row.rows, row.text), []).append(row)
    lines = [line for _, case in sorted(cases.items(), key=lambda one: _order(*one[0])) for line in _lines(case)]
    if picture:
        told = "Tokens a verification against its cost; above the line it is faster than plain decoding"
        head += [light_and_dark(told, picture), ""]
    return "\n".join([*head, *table(COLUMNS, lines), ""])


def _order(temperature: float, rows: int, text: str) -> tuple[float, int, int]:
    return temperature, rows, TEXTS.index(text)


def _lines(case: list[Row]) -> Iterator[list[str]]:
    plain = next((row.seconds / row.new_tokens for row in case if row.method == PLAIN), None)
    for row in sorted(case, key=lambda row: row.seconds / row.new_tokens):
        known = RECIPES.get(row.method)
        yield [
            row.text,
            f"{row.temperature:g}",
            str(row.rows),
            row.method,
            "" if known is None else "yes" if known.lossless else "no",
            f"{row.seconds:.2f}",
            "" if plain is None else f"{plain / (row.seconds / row.new_tokens):.2f}",
            "" if row.tokens_per_verification is None else f"{row.tokens_per_verification:.2f}",
            " ".join("-" if a is None else f"{a:.2f}" for a in row.accepted[:6]),
            "" if row.cost is None else f"{row.cost:.2f}",
            {None: "", True: "yes", False: "no"}[row.as_plain],
        ]
