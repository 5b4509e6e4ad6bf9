"""Drafts out of a datastore: what is found is what a search through all of the text finds; files are checked."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from zigzag import ArgumentError
from zigzag.cli.app import app
from zigzag.generation.datastore import BETWEEN, DEPTH, LOOKED_AT, Datastore, build, files, fingerprint
from zigzag.generation.drafting import Confidence, Fixed, Request, RetrievalDrafter

TOKENIZER: Any = SimpleNamespace(get_vocab=lambda: {"a": 0, "b": 1})
OTHER: Any = SimpleNamespace(get_vocab=lambda: {"a": 1, "b": 0})
texts = st.lists(st.lists(st.integers(0, 2), max_size=40), min_size=1, max_size=4).filter(any)


def found_by_hand(everything: list[list[int]], context: list[int], longest: int, least: int) -> list[list[int]]:
    """What follows each place where the longest end of the context stands, text by text."""
    for length in range(min(longest, DEPTH, len(context)), least - 1, -1):
        end = context[len(context) - length :]
        found = [
            text[at + length :]
            for text in everything
            for at in range(len(text) - length + 1)
            if text[at : at + length] == end
        ]
        if found:
            return found
    return []


def most_common(continuations: list[list[int]], most: int) -> list[int]:
    chosen: list[int] = []
    while len(chosen) < most:
        counts = Counter(row[len(chosen)] for row in continuations if len(row) > len(chosen))
        if not counts:
            break
        chosen.append(min(counts, key=lambda token: (-counts[token], token)))
        continuations = [row for row in continuations if row[: len(chosen)] == chosen]
    return chosen


@given(everything=texts, context=st.lists(st.integers(0, 2), max_size=24), longest=st.integers(1, 20), data=st.data())
def test_as_a_search_through_everything(
    everything: list[list[int]], context: list[int], longest: int, data: st.DataObject
) -> None:
    least = data.draw(st.integers(1, longest))
    store = build(everything, TOKENIZER)
    wanted = found_by_hand(everything, context, longest, least)
    places = store.places(context, longest=longest, least=least)
    assert len(places) == len(wanted)
    ends = [store.tokens[place:].tolist() for place in places]
    assert sorted(end[: end.index(BETWEEN)] for end in ends) == sorted(wanted)
    assert store.continuation(context, 5, longest=longest, least=least) == most_common(wanted, 5)


def test_suffixes_are_ordered_by_their_first_tokens() -> None:
    rng = np.random.default_rng(0)
    store = build([rng.integers(0, 3, 300).tolist(), [0] * 50], TOKENIZER)
    begins = [tuple(store.tokens[place : place + DEPTH].tolist()) for place in store.order]
    assert begins == sorted(begins) and sorted(store.order.tolist()) == list(range(len(store.tokens)))


def test_of_very_many_places_some_are_looked_at() -> None:
    """Spread over all of them, so that none of the two texts is left out."""
    store = build([[1, 2, 3] * 300, [1, 2, 4] * 400], TOKENIZER)
    assert len(store.places([9, 1, 2])) == 700 > LOOKED_AT
    assert store.continuation([9, 1, 2], 3) == [4, 1, 2]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    store = build([[1, 2, 3, 1, 2, 4]], TOKENIZER)
    store.save(tmp_path / "store")
    again = Datastore.open(tmp_path / "store", TOKENIZER)
    assert np.array_equal(again.tokens, store.tokens) and np.array_equal(again.order, store.order)
    assert isinstance(again.tokens, np.memmap) and again.tokenizer == fingerprint(TOKENIZER) == store.tokenizer
    assert again.continuation([1, 2], 1) == [3]
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    with pytest.raises(ArgumentError, match="is there; give another folder"):
        store.save(tmp_path / "store")


def test_what_breaks_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("zigzag.generation.datastore.write_json", full)
    with pytest.raises(OSError, match="no space left"):
        build([[1, 2]], TOKENIZER).save(tmp_path / "store")
    assert not list(tmp_path.iterdir())


def changed(folder: Path, **values: Any) -> None:
    head = json.loads((folder / "datastore.json").read_text())
    (folder / "datastore.json").write_text(json.dumps(head | values))


def other_numbers(folder: Path) -> None:
    np.save(folder / "order.npy", np.load(folder / "order.npy")[::-1])


DAMAGE = {
    "other numbers": (other_numbers, "order.npy is damaged"),
    "cut off": (lambda f: (f / "tokens.npy").write_bytes((f / "tokens.npy").read_bytes()[:-3]), "tokens.npy cannot"),
    "another dtype": (lambda f: np.save(f / "tokens.npy", np.zeros(7)), "tokens.npy is damaged"),
    "objects": (lambda f: np.save(f / "tokens.npy", np.array([{}] * 7), allow_pickle=True), "tokens.npy cannot"),
    "gone": (lambda f: (f / "order.npy").unlink(), "order.npy cannot"),
    "no head": (lambda f: (f / "datastore.json").unlink(), "there is no file"),
    "no JSON": (lambda f: (f / "datastore.json").write_text("{"), "a JSON file is needed"),
    "another format": (lambda f: changed(f, format="x"), "format 'zigzag-datastore'"),
    "another depth": (lambda f: changed(f, depth=8), "ordered by 8 tokens"),
    "no sums": (lambda f: changed(f, sha256=None), "tokens.npy is damaged"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_folder(name: str, tmp_path: Path) -> None:
    build([[1, 2, 3, 1, 2, 4]], TOKENIZER).save(tmp_path / "store")
    damage, told = DAMAGE[name]
    damage(tmp_path / "store")
    with pytest.raises(ArgumentError, match=told):
        Datastore.open(tmp_path / "store", TOKENIZER)


def test_what_cannot_be(tmp_path: Path) -> None:
    store = build([[1, 2]], TOKENIZER)
    store.save(tmp_path / "store")
    with pytest.raises(ArgumentError, match="another tokenizer"):
        Datastore.open(tmp_path / "store", OTHER)
    with pytest.raises(ArgumentError, match="no text"):
        build([[], []], TOKENIZER)
    with pytest.raises(ArgumentError, match="no probabilities for Confidence"):
        RetrievalDrafter(store, Confidence(0.5, 4))
    for options in ({"longest": 0}, {"least": 0}, {"longest": 2, "least": 3}, {"least": DEPTH + 1, "longest": 99}):
        with pytest.raises(ArgumentError):
            RetrievalDrafter(store, **options)
    (tmp_path / "a.bin").touch()
    with pytest.raises(ArgumentError, match=r"no file that ends with \.txt"):
        files(tmp_path, [".txt"])


def test_drafts_of_rows() -> None:
    """Each row for itself, no more than it may have; a policy is told what came of them."""
    store = build([[1, 2, 3, 4, 5, 6, 7]], TOKENIZER)
    drafter = RetrievalDrafter(store, Fixed(3), least=2)
    draft = drafter.draft(Request([[9, 1, 2], [1, 9], [9, 9, 3, 4, 5]], [9, 9, 1], [0, 1, 2], 0, None))
    assert draft.rows == [[3, 4, 5], [], [6]] and draft.probs is None and drafter.longest == 3
    far = RetrievalDrafter(build([[1, 2, 3, 4], [5, 2, 3, 6]], TOKENIZER), 1)
    assert far.draft(Request([[5, 2, 3], [1, 2, 3]], [9, 9], [0, 1], 0, None)).rows == [[6], [4]]
    drafter.observe([3, 0, 1], [1, 0, 1])
    drafter.select([0])


def test_the_command(tmp_path: Path) -> None:
    """Built from a folder, then drafted from: the tokens of plain decoding, some of them out of the text."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    (tmp_path / "texts/more").mkdir(parents=True)
    (tmp_path / "texts/one.py").write_text("def area(width, height):\n    return width * height\n" * 3)
    (tmp_path / "texts/more/two.txt").write_text("nothing of it")
    (tmp_path / "texts/three.bin").write_bytes(b"\x00")
    out = tmp_path / "store"
    run = CliRunner().invoke
    built = run(app, ["datastore", "build", str(tmp_path / "texts"), "--out", str(out), "--model", "tiny-glm"])
    assert built.exit_code == 0 and "of 2 files" in " ".join(built.output.split()), built.output
    ask = ["generate", "def area(width", "--model", "tiny-glm", "--new-tokens", "12"]
    drafted = run(app, [*ask, "--drafter", "retrieval", "--datastore", str(out)])
    assert drafted.exit_code == 0 and "accepted" in drafted.output, drafted.output
    for wrong in (["--drafter", "retrieval"], ["--datastore", str(out)]):
        assert isinstance(run(app, [*ask, *wrong]).exception, Exception)
    again = run(app, ["datastore", "build", str(tmp_path / "texts"), "--out", str(out), "--model", "tiny-glm"])
    assert isinstance(again.exception, ArgumentError)
