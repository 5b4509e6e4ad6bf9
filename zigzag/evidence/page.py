"""The page and the pictures of `make evidence`, written from its results alone."""

from collections.abc import Iterable
from itertools import product
from pathlib import Path

import numpy as np

from zigzag.evidence import figures
from zigzag.evidence.intervals import wilson
from zigzag.evidence.measure import LENGTHS, SHARES, Cell, Row, State, rows, stored_scores
from zigzag.files.markdown import light_and_dark, table
from zigzag.plans.layers import make_plan
from zigzag.reference import CRITERIA

Lines = dict[str, list[tuple[int, float, float, float]]]  # by name: (streaming layers, value, low, high)
CHECKED = (1000, 2000)  # the lengths by which "best" is decided


def write_page(state: State, folder: Path) -> list[Path]:
    """Write `README.md` and the figures into `folder`; returns their paths."""
    every = rows(stored_scores(state))
    folder.mkdir(parents=True, exist_ok=True)
    paths = _draw(state, every, folder)
    page = folder / "README.md"
    page.write_text("\n\n".join(_page(state, every)) + "\n")
    return [page, *paths]


def best(
    state: State, every: Iterable[Row], streaming: int, method: str | None = None, kind: str = "layers"
) -> Row | None:
    """The measured plan of a kind with the most passkeys at 1,000 and 2,000 tokens, then the least loss."""
    measured = [
        row
        for row in every
        if row.kind == kind
        and row.num_streaming == streaming
        and method in (None, row.method)
        and all(_cell(state, row, length) for length in CHECKED)
    ]

    def worth(row: Row) -> tuple[int, float]:
        cells = [_cell(state, row, length) or {} for length in CHECKED]
        return sum(sum(c["right"]) for c in cells), -float(np.mean([c["losses"] for c in cells]))

    return max(measured, key=worth, default=None)


def _cell(state: State, row: Row, length: int) -> Cell | None:
    cell: Cell | None = state["cells"].get(f"{row.key}@{length}")
    return cell


def _page(state: State, every: list[Row]) -> Iterable[str]:
    """Headings, paragraphs and tables, in their order."""
    facts, lengths = state["conditions"], sorted(LENGTHS)
    wanted = {f"{row.key}@{length}" for row in every for length in LENGTHS}
    missing = len(wanted - set(state["cells"]))
    yield "# Evidence"
    yield "Made by `make evidence`; every number below is in `results.json`. Nothing here is typed by hand."
    yield (
        f"{facts['model']}, {facts['dtype']}, {facts['device']}, torch {facts['torch']}, transformers "
        f"{facts['transformers']}. Sink {facts['sink']}, recent {facts['recent']}. {facts['prompts']} passkey prompts "
        f"a length, on an even grid of depths, seeds fixed beforehand; calibrated on {facts['calibration']} "
        f"(layer_loss on a quarter of them), none of which is evaluated on. A prompt counts as found when every digit "
        f"token is the argmax; loss is mean nats per digit token; brackets are 95% Wilson intervals."
    )
    yield f"{len(wanted) - missing} of {len(wanted)} cells are measured." if missing else "All cells are measured."
    yield "## The main result"
    yield (
        "*Best* is the layer plan, or the head-wise plan, with the most passkeys at 1,000 and 2,000 tokens, then the "
        "least loss, chosen on these same prompts."
    )
    yield _table(state, _headline(state, every), lengths)
    yield _misses(state, every)
    for streaming in SHARES[:2]:
        yield f"## Methods and criteria, {streaming} layers stream"
        these = [row for row in every if row.num_streaming == streaming]
        named = [(f"{r.method}, {r.criterion}", r) for r in sorted(these, key=lambda r: r.method) if r.kind == "layers"]
        named += [(f"{r.method}, head by head", r) for r in these if r.kind == "heads"]
        named += [(f"random layers, {r.method}", r) for r in these if r.kind == "random"]
        yield _table(state, named, lengths)
    yield "## Bytes in the cache"
    yield "After one prompt under the gate_gradient plan, with 64 spare slots a layer, batch 1."
    held = [
        [*name.split("@"), *(f"{count:,}" for count in counts)] for name, counts in state.get("cache_bytes", {}).items()
    ]
    head = ("streaming layers", "tokens", "measured", "`kv_bytes`", "full attention")
    yield "\n".join(table(head, [[streaming, f"{int(length):,}", *rest] for streaming, length, *rest in held]))
    yield "## Against the share of streaming layers"
    for name, length in product(("retrieval", "loss"), CHECKED):
        yield light_and_dark(f"{name} against streaming layers, {length:,} tokens", f"{name}_{length}.png")
    yield "Each method with the criterion that is best at 20 streaming layers; random is the mean of its draws."
    yield "## Head scores"
    for method in state["scores"]:
        yield light_and_dark(f"{method}: scores of all KV heads, the full layers framed", f"heads_{method}.png")


def _misses(state: State, every: list[Row]) -> str:
    """Where the best plan finds fewer passkeys than full attention, in words."""
    full, lines = next(row for row in every if row.kind == "full"), []
    for streaming in sorted(SHARES[:2]):
        row = best(state, every, streaming)
        cells = [(_cell(state, full, n), _cell(state, row, n), n) for n in sorted(LENGTHS)] if row else []
        short = [(sum(f["right"]) - sum(p["right"]), n) for f, p, n in cells if f and p]
        missed = ", ".join(f"{count} at {n:,} tokens" for count, n in short if count > 0)
        tried = "every method and criterion below was tried; `zigzag refine` goes further"
        text = f"misses {missed}; {tried}" if missed else "misses none"
        plan = f"the best plan with {streaming} streaming layers"
        lines.append(f"- Of the passkeys that full attention finds, {plan} {text}.")
    return "\n".join(lines)


def _headline(state: State, every: list[Row]) -> list[tuple[str, Row]]:
    by = {(r.kind, r.method, r.num_streaming): r for r in every if r.kind != "layers"}
    named = [("full attention", by["full", "", 0])]
    for streaming in sorted(SHARES[:2]):
        row = best(state, every, streaming)
        if row is not None:
            named.append((f"best, {streaming} stream: {row.method}, {row.criterion}", row))
        rival = best(state, every, streaming, kind="heads")
        if row is not None and (rival is None or rival.method != row.method):  # the same scores, head by head
            named.append((f"head by head, {streaming}: {row.method}", by["heads", row.method, streaming]))
        if rival is not None:
            named.append((f"best head by head, {streaming}: {rival.method}", rival))
        named += [
            (f"random layers, {streaming}, {m}", r) for (k, m, s), r in by.items() if (k, s) == ("random", streaming)
        ]
    num_layers = len(next(iter(state["scores"].values())))
    return [*named, ("all layers stream", by["none", "", num_layers])]


def _table(state: State, named: list[tuple[str, Row]], lengths: list[int]) -> str:
    cells = [(name, [_cell(state, row, length) for length in lengths]) for name, row in named]
    rows = [[name, *map(_text, found)] for name, found in cells if any(found)]
    return "\n".join(table(["attention", *(f"{length:,} tokens: found, loss" for length in lengths)], rows))


def _text(cell: Cell | None) -> str:
    if cell is None:
        return "not measured"
    right, total = sum(cell["right"]), len(cell["right"])
    low, high = wilson(right, total)
    return f"{right}/{total} [{low:.2f}, {high:.2f}], {np.mean(cell['losses']):.3f}"


def _draw(state: State, every: list[Row], folder: Path) -> list[Path]:
    paths: list[Path] = []
    scores = stored_scores(state)
    for method, values in scores.items():
        row = best(state, every, SHARES[0], method)
        plan = make_plan(
            values, num_full=values.num_layers - SHARES[0], criterion=row.criterion if row else CRITERIA[-1]
        )
        paths += figures.heat_map(values, plan, folder / f"heads_{method}.png")
    full = next(r for r in every if r.kind == "full")
    for length in CHECKED:
        if (cell := _cell(state, full, length)) is None:
            continue
        found, loss = _lines(state, every, length)
        at = (np.mean(cell["right"]), np.mean(cell["losses"]))
        for name, lines, label, level in (("retrieval", found, "passkeys found", at[0]), ("loss", loss, "loss", at[1])):
            title = f"{label}, {length:,} tokens, {state['conditions']['prompts']} prompts"
            told = {"ylabel": label, "title": title}
            paths += figures.by_share(lines, folder / f"{name}_{length}.png", **told, reference=float(level))
    return paths


def _lines(state: State, every: list[Row], length: int) -> tuple[Lines, Lines]:
    """(retrieval, loss)."""
    groups: dict[str, dict[int, list[Cell]]] = {}
    for row in every:
        cell = _cell(state, row, length)
        if cell is None or row.kind not in ("layers", "random"):
            continue
        chosen = best(state, every, SHARES[0], row.method)
        if row.kind == "layers" and (chosen is None or row.criterion != chosen.criterion):
            continue
        name = "random layers" if row.kind == "random" else f"{row.method}, {row.criterion}"
        groups.setdefault(name, {}).setdefault(row.num_streaming, []).append(cell)
    found: Lines = {}
    loss: Lines = {}
    for name, shares in groups.items():
        for streaming, cells in shares.items():
            right = np.concatenate([c["right"] for c in cells])
            losses = np.concatenate([c["losses"] for c in cells])
            found.setdefault(name, []).append((streaming, right.mean(), *wilson(int(right.sum()), len(right))))
            error = 1.96 * losses.std(ddof=1) / np.sqrt(len(losses))
            loss.setdefault(name, []).append((streaming, losses.mean(), losses.mean() - error, losses.mean() + error))
    return found, loss
