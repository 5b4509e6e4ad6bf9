"""Text to draft from: all its suffixes in order, so that what followed some tokens anywhere in it is found in a moment.

A folder with `tokens.npy`, `order.npy` and `datastore.json`: plain arrays that are mapped into memory, not read, and
never pickled. Source: REST (arXiv 2311.08252).
"""

import hashlib
import json
import shutil
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from zigzag.files.json_files import read_json, write_json
from zigzag.reference.errors import ArgumentError

FORMAT, DEPTH = "zigzag-datastore", 16  # DEPTH: tokens by which suffixes are ordered, a power of two
BETWEEN = -1  # stands between two texts, and at the end
LOOKED_AT = 256  # most places of which continuations are compared
Tokens = NDArray[np.int32]


@dataclass(frozen=True)
class Datastore:
    """Texts and all their suffixes, by their first DEPTH tokens.

    tokens: [N] of all texts, BETWEEN behind each; order: [N] where suffixes begin
    tokenizer: a fingerprint of the tokenizer that made them
    """

    tokens: Tokens
    order: Tokens
    tokenizer: str

    def places(self, context: Sequence[int], *, longest: int = DEPTH, least: int = 2) -> Tokens:
        """Where the longest end of `context` that stands in the text is continued; of at least `least` tokens.

        Longer ends stand nowhere that shorter ones do not, so the length is found by bisection.
        """
        low, high, found = least, min(longest, DEPTH, len(context)), self.order[:0]
        while low <= high:
            length = (low + high) // 2
            begin, end = self._range(tuple(context[len(context) - length :]))
            if begin < end:
                low, found = length + 1, self.order[begin:end] + length
            else:
                high = length - 1
        return found

    def _range(self, wanted: tuple[int, ...]) -> tuple[int, int]:
        """Which suffixes begin with these tokens."""

        def first(number: int) -> tuple[int, ...]:
            place = int(self.order[number])
            return tuple(self.tokens[place : place + len(wanted)].tolist())

        numbers = range(len(self.order))
        return bisect_left(numbers, wanted, key=first), bisect_right(numbers, wanted, key=first)

    def continuation(self, context: Sequence[int], most: int, *, longest: int = DEPTH, least: int = 2) -> list[int]:
        """At most `most` tokens: after those chosen so far the one that follows most often; of equals the smallest."""
        places = self.places(context, longest=longest, least=least)
        if len(places) > LOOKED_AT:
            places = places[np.linspace(0, len(places) - 1, LOOKED_AT).astype(np.int64)]
        chosen: list[int] = []
        while len(places) and len(chosen) < most:
            following = self.tokens[places]
            tokens, counts = np.unique(following[following != BETWEEN], return_counts=True)
            if not len(tokens):
                break
            token = int(tokens[counts.argmax()])
            chosen.append(token)
            places = places[following == token] + 1
        return chosen

    def save(self, folder: str | Path) -> None:
        """Write it whole or not at all; ArgumentError for a folder that is there."""
        path = Path(folder)
        if path.exists():
            raise ArgumentError(f"datastore: {path} is there; give another folder, or remove it")
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{uuid4().hex}.part")
        part.mkdir()
        try:
            for name, array in self._arrays():
                np.save(part / f"{name}.npy", array)
            sums = {name: _sum(array) for name, array in self._arrays()}
            head = {"format": FORMAT, "version": 1, "count": len(self.tokens), "depth": DEPTH}
            write_json(part / "datastore.json", head | {"tokenizer": self.tokenizer, "sha256": sums})
            part.rename(path)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise

    def _arrays(self) -> Iterator[tuple[str, Tokens]]:
        yield "tokens", self.tokens
        yield "order", self.order

    @classmethod
    def open(cls, folder: str | Path, tokenizer: Any) -> "Datastore":
        """Map a folder into memory, after its sums were compared.

        Raises ArgumentError for a folder that is none, a damaged one, or one of another tokenizer.
        """
        path = Path(folder)
        head = check_datastore(path)
        mark = fingerprint(tokenizer)
        if head.get("tokenizer") != mark:
            raise ArgumentError(f"datastore: {path} was built with another tokenizer; build one with this model's")
        if head.get("depth") != DEPTH:
            raise ArgumentError(
                f"datastore: {path} is ordered by {head.get('depth')} tokens, not {DEPTH}; build it anew"
            )
        tokens, order = (_mapped(path / f"{name}.npy", head, name) for name in ("tokens", "order"))
        return cls(tokens, order, mark)


def check_datastore(folder: str | Path) -> dict[str, Any]:
    """What a folder says of itself; ArgumentError for one that is no datastore, found without a model."""
    return read_json(Path(folder) / "datastore.json", ArgumentError, FORMAT)


def _mapped(path: Path, head: dict[str, Any], name: str) -> Tokens:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as failure:
        raise ArgumentError(f"datastore: {path} cannot be read ({failure}); build it anew") from failure
    sums = head.get("sha256")
    wanted = sums.get(name) if isinstance(sums, dict) else None
    if array.dtype != np.int32 or array.shape != (head.get("count"),) or _sum(array) != wanted:
        raise ArgumentError(f"datastore: {path} is damaged: it is not what was written; build it anew")
    found: Tokens = array
    return found


def _sum(array: Tokens) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def fingerprint(tokenizer: Any) -> str:
    """Of a tokenizer's vocabulary: which token has which number."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def build(texts: Iterable[Sequence[int]], tokenizer: Any) -> Datastore:
    """Of the tokens of some texts; ArgumentError where there are none, or more than can be counted."""
    pieces = [np.asarray([*text, BETWEEN], dtype=np.int32) for text in texts if len(text)]
    if not pieces:
        raise ArgumentError("datastore: no text to build it from; give files that hold some")
    tokens = np.concatenate(pieces)
    if len(tokens) >= 2**31:
        raise ArgumentError(f"datastore: at most 2^31 - 1 tokens, got {len(tokens):,}; build it from less text")
    return Datastore(tokens, _ordered(tokens), fingerprint(tokenizer))


def _ordered(tokens: Tokens) -> Tokens:
    """Suffixes by their first DEPTH tokens: ranks of 1 token, then of 2, 4, ... (Manber and Myers).

    What lies beyond the end is smaller than all tokens.
    """
    ranks = np.unique(tokens, return_inverse=True)[1].astype(np.int64) + 1
    length = 1
    while length < DEPTH:
        behind = np.zeros_like(ranks)
        behind[:-length] = ranks[length:]
        ranks = np.unique(ranks * (ranks.max() + 1) + behind, return_inverse=True)[1].astype(np.int64) + 1
        length *= 2
    return np.argsort(ranks, kind="stable").astype(np.int32)


def files(folder: str | Path, suffixes: Sequence[str]) -> list[Path]:
    """The files of a folder with one of these endings, in order; ArgumentError where there is none."""
    found = sorted(path for path in Path(folder).rglob("*") if path.is_file() and path.suffix in suffixes)
    if not found:
        raise ArgumentError(f"datastore: {folder} holds no file that ends with {', '.join(suffixes)}")
    return found
