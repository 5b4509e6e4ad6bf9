"""The page of a suite: quality against the bytes of keys and values, from its file alone."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zigzag.evidence import figures
from zigzag.evidence.intervals import Interval, mean_difference, share_difference, wilson
from zigzag.evidence.suites import NEEDED, State, can_do, cell_name
from zigzag.files.json_files import write_text
from zigzag.files.markdown import light_and_dark, table

Row = dict[str, Any]
Cell = dict[str, Any]


class Point(NamedTuple):
    """One row at one task and length, beside full attention on the same prompts."""

    name: str
    row: Row
    cell: Cell
    full: Cell
    num_bytes: int

    @property
    def difference(self) -> Interval:
        """Less full attention: of shares of right answers, or of losses where nothing is right or wrong."""
        return compared(self.cell, self.full)

    @property
    def value(self) -> Interval:
        """Share of right answers by Wilson's interval, or the mean loss by Student's."""
        if "right" in self.cell:
            right, total = sum(self.cell["right"]), len(self.cell["right"])
            return Interval(right / total, *wilson(right, total))
        losses = means(self.cell)
        return mean_difference(losses, np.zeros(len(losses)).tolist())


def write_page(state: State, folder: Path) -> list[Path]:
    """Write `<suite>.md` and its pictures into `folder`; returns their paths."""
    name = state["suite"]
    pictures = [paths for at in places(state) if (paths := _draw(state, at, folder))]
    page = folder / f"{name}.md"
    write_text(page, "\n\n".join(_page(state, [light for light, *_ in pictures])) + "\n")
    return [page, *(path for paths in pictures for path in paths)]


def places(state: State) -> list[tuple[str, int]]:
    """(task, length) of all cells, tasks in the file's order."""
    found = {_place(name) for name in state["cells"]}
    order = list(state["tasks"])
    return sorted(found, key=lambda at: (at[1], order.index(at[0])))


def points(state: State, at: tuple[str, int]) -> list[Point]:
    """What was measured there, the most bytes first; nothing where full attention was not."""
    task, length = at

    def cell(row: Row) -> Cell | None:
        found: Cell | None = state["cells"].get(cell_name(row["key"], task, length))
        return found

    full = next((cell(row) for row in state["rows"].values() if row["kind"] == "full"), None)
    if full is None:
        return []
    found = [
        Point(name, row, measured, full, row["kv_bytes"][str(length)])
        for name, row in state["rows"].items()
        if (measured := cell(row)) is not None
    ]
    return sorted(found, key=lambda point: -point.num_bytes)


def counts(found: list[Point]) -> bool:
    """Whether full attention does the task at all, so that a plan can lose something."""
    return bool(found) and can_do(found[0].full)


def compared(cell: Cell, other: Cell) -> Interval:
    """A cell less another, prompt by prompt."""
    if "right" in cell:
        return share_difference(cell["right"], other["right"])
    return mean_difference(means(cell), means(other))


def means(cell: Cell) -> list[float]:
    """Mean loss of each prompt or row."""
    return [float(np.mean(one)) for one in cell["losses"]]


def rivals_at_equal_bytes(found: list[Point]) -> Iterator[tuple[Point, Point]]:
    """(layer plan, head-wise plan) of the same bytes, on the same model."""
    for one in found:
        for other in found:
            kinds = (one.row["kind"], other.row["kind"])
            same = one.num_bytes == other.num_bytes and one.row["model"] == other.row["model"]
            if kinds == ("layers", "heads") and same:
                yield one, other


def recoveries(found: list[Point]) -> Iterator[tuple[Point, Point]]:
    """(before, after): the same plan on the suite's model and on one that was trained under it."""
    for after in found:
        for before in found:
            same = all(after.row[part] == before.row[part] for part in ("map", "window"))
            if after.row["model"] and before.row["model"] is None and same:
                yield before, after


def _place(name: str) -> tuple[str, int]:
    _, _, place = name.rpartition(" | ")
    task, _, length = place.rpartition(" @ ")
    return task, int(length)


def _page(state: State, pictures: list[Path]) -> Iterable[str]:
    facts, at = state["conditions"], places(state)
    yield f"# Evidence, suite {state['suite']}"
    yield (
        f"Made by `zigzag evidence --suite {state['suite']}`; every number below is in `{state['suite']}.json`, "
        f"none is typed by hand."
    )
    yield "; ".join(f"{name} {value}" for name, value in facts.items()) + "."
    yield _reading(state)
    yield "## Tasks"
    yield "\n".join(table(("task", "what", "chance", "numbers"), map(_task, state["tasks"].items())))
    silent = [f"{task} at {length:,}" for task, length in at if not counts(points(state, (task, length)))]
    if silent:
        yield (
            f"Full attention answers less than {NEEDED:.0%} of {', '.join(silent)}. There a plan has little to lose: "
            f"these cells are in no conclusion, and plans were not measured."
        )
    yield "## Where layers lose against heads"
    yield "\n".join(_losses(state, at)) or "No layer plan and head-wise plan of the same bytes were measured."
    if after := "\n".join(_recovered(state, at)):
        yield "## Before and after recovery"
        yield after
    for task, length in at:
        yield f"## {task}, {length:,}"
        yield _table(state, (task, length))
    if pictures:
        yield "## Pictures"
        yield from (light_and_dark(path.stem, path.name) for path in pictures)


def _reading(state: State) -> str:
    calibrated = sorted({str(row["calibrated_on"]) for row in state["rows"].values() if row["calibrated_on"]})
    seen = f"Plans made of scores were calibrated on passkeys ({'; '.join(calibrated)}). " if calibrated else ""
    return (
        f"A prompt counts as right when every token of the answer is the argmax. {seen}No prompt here was "
        f"calibrated on; tasks other than passkeys are held out as a whole. Brackets are 95% intervals: Wilson's of a "
        f"share; of the difference to full attention on the same prompts Newcombe's for pairs (method 10), of losses "
        f"Student's for pairs. Chance is what guessing among the candidates of the text gives, or among all possible "
        f"answers where the text has only one. Few prompts make wide intervals: read these first."
    )


def _task(item: tuple[str, dict[str, Any]]) -> list[object]:
    name, about = item
    numbers = ", ".join(f"{key} {value}" for key, value in about.items() if key not in ("what", "chance", "chances"))
    return [name, about["what"], "" if about["chance"] is None else f"{about['chance']:.2g}", numbers]


def _table(state: State, at: tuple[str, int]) -> str:
    found = points(state, at)
    if not found:
        return "Full attention was not measured."
    most = max(point.num_bytes for point in found)
    head = ("attention", "KV bytes", "right", "loss", "against full attention")
    rows = [
        [
            point.name,
            f"{point.num_bytes:,} ({point.num_bytes / most:.0%})",
            _share(point),
            _loss(point.cell),
            "" if point.row["kind"] == "full" else _signed(point.difference),
        ]
        for point in found
    ]
    chance = state["tasks"][at[0]]["chance"]
    if chance is not None:
        chance = state["tasks"][at[0]].get("chances", {}).get(str(at[1]), chance)
        rows.append(["chance", "", f"{chance:.2g}", "", ""])
    return "\n".join(table(head, rows))


def _share(point: Point) -> str:
    if "right" not in point.cell:
        return ""
    right, value = point.cell["right"], point.value
    return f"{sum(right)}/{len(right)} [{value.low:.2f}, {value.high:.2f}]"


def _loss(cell: Cell) -> str:
    if "losses" not in cell:
        return ""
    if not isinstance(cell["losses"][0], list):
        return f"{np.mean(cell['losses']):.3f}"
    by_part = np.mean(cell["losses"], axis=0)
    return f"{by_part.mean():.4f} (by position: {', '.join(f'{part:.3f}' for part in by_part)})"


def _signed(difference: Interval) -> str:
    return f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"


def _losses(state: State, at: list[tuple[str, int]]) -> Iterator[str]:
    """One line a pair of equal bytes."""
    for task, length in at:
        found = points(state, (task, length))
        if counts(found):
            for one, other in rivals_at_equal_bytes(found):
                less = compared(one.cell, other.cell)
                yield f"- {task}, {length:,}: {one.name} against {other.name}: {verdict(less, 'right' in one.cell)}"


def verdict(difference: Interval, larger_is_better: bool) -> str:
    """A difference in words, with its interval; what the interval does not decide is said to be undecided."""
    better = difference if larger_is_better else Interval(-difference.value, -difference.high, -difference.low)
    if better.low > 0:
        word = "wins"
    elif better.high < 0:
        word = "loses"
    else:
        word = "undecided, behind" if better.value < 0 else "undecided, ahead" if better.value > 0 else "even"
    return f"{word}, {_signed(difference)}"


def _recovered(state: State, at: list[tuple[str, int]]) -> Iterator[str]:
    for task, length in at:
        found = points(state, (task, length))
        if counts(found):
            for before, after in recoveries(found):
                gain = compared(after.cell, before.cell)
                said = verdict(gain, "right" in after.cell)
                yield f"- {task}, {length:,}: {after.name} against {before.name}: {said}"


def _draw(state: State, at: tuple[str, int], folder: Path) -> list[Path]:
    """The picture for light pages and the one for dark pages; nothing of what is in no conclusion."""
    found = points(state, at)
    if not counts(found):
        return []
    task, length = at
    path = folder / f"{state['suite']}_{task}_{length}.png"
    groups: dict[str, list[tuple[int, float, float, float]]] = {}
    for point in found:
        kind = f"{point.row['kind']}, recovered" if point.row["model"] else point.row["kind"]
        groups.setdefault(kind, []).append((point.num_bytes, *point.value))
    label = "share right" if "right" in found[0].cell else "loss"
    chance = state["tasks"][task]["chance"]
    return figures.by_bytes(groups, path, ylabel=label, title=f"{task}, {length:,}", chance=chance)
