"""Held-out cases: what no training document holds, by the same rule that keeps it out of those (`corpus`)."""

from typing import Any

import numpy as np

from zigzag.measuring.corpus import is_held_out
from zigzag.measuring.prompts import PasskeyPrompt, Prompt, passkey_prompt
from zigzag.measuring.sums import Sum, draw_sum
from zigzag.measuring.tasks import TASKS
from zigzag.reference.errors import ArgumentError
from zigzag.training.documents import Documents
from zigzag.training.pieces import CODE_DIGITS, TRAINING_SEEDS, name_of

RECORDS = 16  # named things in a recall case
PROBE = 400  # tokens of a prompt that is made to see its key
BEFORE, BEHIND = 32, 160  # tokens before the first and after the last record: more than streaming layers keep
COPIED = 64  # tokens of a copying case


def passkey_cases(tokenizer: Any, length: int, count: int, seed: int) -> list[PasskeyPrompt]:
    """Passkey prompts on an even grid of depths, with the first seeds from `seed` whose keys are held out."""
    cases: list[PasskeyPrompt] = []
    while len(cases) < count:
        key = passkey_prompt(tokenizer, min(length, PROBE), depth=0.5, seed=seed).key
        if is_held_out(f"key {key}"):
            depth = len(cases) / max(1, count - 1)
            cases.append(passkey_prompt(tokenizer, length, depth=depth, seed=seed))
        seed += 1
    return cases


def recall_cases(documents: Documents, length: int, count: int, seed: int) -> list[PasskeyPrompt]:
    """Codes of 16 things in `length` tokens of filler, one asked for, by its place from the first to the last."""
    rng = np.random.default_rng((seed, length))
    return [_recall_case(documents, rng, length, i * RECORDS // count, seed) for i in range(count)]


def _recall_case(documents: Documents, rng: np.random.Generator, length: int, asked: int, seed: int) -> PasskeyPrompt:
    chosen = rng.choice(len(documents.pieces.names), RECORDS, replace=False)
    records, codes = [], []
    for name in chosen:
        while not is_held_out(f"{name_of(name)} {(code := f'{rng.integers(10**CODE_DIGITS):0{CODE_DIGITS}}')}"):
            pass
        codes.append(code)
        records.append(np.concatenate([tokens for tokens, _ in documents.record(name, code, "prompt")]))
    (before, _), (answer, _), _ = documents.record(chosen[asked], codes[asked], "recall")
    room = length - sum(map(len, records)) - len(before) - len(answer)
    filler = documents.filler(rng, max(room, 0))
    first, last = min(BEFORE, len(filler) // 4), max(len(filler) - BEHIND, len(filler) // 2)
    cuts = np.linspace(first, last, RECORDS).astype(int)
    pieces = [
        piece
        for start, stop, record in zip(cuts, [*cuts[1:], len(filler)], records, strict=True)
        for piece in (record, filler[start:stop])
    ]
    prompt = np.concatenate([filler[:first], *pieces, before])
    return PasskeyPrompt(tuple(prompt.tolist()), tuple(answer), asked / RECORDS, seed, codes[asked])


def task_cases(documents: Documents, task: str, length: int, count: int, seed: int) -> list[Prompt]:
    """Prompts of `zigzag.measuring.tasks` on an even grid of depths, of the seeds from `seed` on.

    Raises ArgumentError for seeds that training may have drawn.
    """
    if not 0 <= seed <= TRAINING_SEEDS[0] - count:
        raise ArgumentError(
            f"task_cases: seeds must be 0 or more and below {TRAINING_SEEDS[0]}, where training's begin; got {count} "
            f"from {seed} on"
        )
    return list(TASKS[task].prompts(documents.pieces.tokenizer, length, count=count, seed=seed))


def copy_cases(documents: Documents, count: int, seed: int) -> list[Prompt]:
    """Random tokens to be copied."""
    rng = np.random.default_rng(seed)
    cases: list[Prompt] = []
    while len(cases) < count:
        tokens = documents.draw_tokens(rng, COPIED)
        if is_held_out(f"copy {tokens.tolist()}"):
            ids = documents.copied(tokens).ids.tolist()
            cut = len(ids) - COPIED - 1
            cases.append(Prompt(tuple(ids[:cut]), tuple(ids[cut:-1]), 0.0, seed))
    return cases


def sum_cases(count: int, operands: int, digits: int, seed: int) -> list[Sum]:
    """Different sums."""
    rng = np.random.default_rng(seed)
    cases: dict[str, Sum] = {}
    while len(cases) < count:
        made = draw_sum(rng, operands, digits, held_out=True)
        cases[made.question] = made
    return list(cases.values())


def text_rows(tokenizer: Any, texts: list[str], length: int, count: int) -> np.ndarray:
    """[n, length] tokens of held-out texts, one after another, cut into at most `count` rows."""
    ids = [
        token
        for text in texts
        for token in (*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id)
    ]
    rows = min(count, len(ids) // length)
    return np.array(ids[: rows * length], dtype=np.int64).reshape(rows, length)
