"""The record of the broken backends, a line a mistake, and the page that tells of it."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from broken import records

from zigzag.reference import OPS

ROOT = Path(__file__).resolve().parents[2]
RECORD, PAGE = ROOT / "docs/conformance-kills.json", ROOT / "docs/conformance-kill-table.md"
SEEDS = 10  # of a mistake, that it counts as caught
Line = dict[str, Any]  # op, name, seeds, and of a mistake properties

HEAD = """# What the conformance kit catches

A kit that lets everything pass is worth nothing. So here are {mistakes} broken backends, over all {ops} ops: each has
one op of the reference with one mistake, of those that are really made, and everything else right. The kit must fail
each of them, with every seed, at its default number of examples.

```sh
python tests/broken/run.py            # judges what is not judged yet; kept in out/broken, so it may be broken off
python tests/broken/run.py --page     # writes this page
python tests/broken/run.py --only merge --seeds 3 --jobs 2
```

`make broken` does the first. Each verdict is a run of its own by the way of `zigzag conform`, of one op with one seed,
which ends at the first check that fails, and makes examples no smaller. The number of seeds is {seeds}:

{counts}

## Right backends

The same runs on backends without a mistake: what they find there is found wrongly. `wrapped` is the reference,
registered as the broken backends are.

{right}

## Broken backends

*Caught by*: the properties whose checks failed first, those of [conformance.md](conformance.md); where they differ from
seed to seed, with the number of seeds. What a front door refuses before it calls a backend, such as arguments of wrong
shapes, a backend need not refuse, so it is a mistake of the two assignments only, whose front doors leave it to them.

{table}
"""


def lines_of(folder: Path) -> list[Line]:
    """What was judged of each subject, of these sources and tests."""
    found = []
    for subject in records.subjects():
        seeds = records.read(folder, subject, records.state_of(subject))
        properties = Counter(one["property"] for one in seeds.values())
        line: Line = {"op": subject.op, "name": subject.name, "mistake": subject.mistake is not None}
        found.append(line | {"seeds": len(seeds), "properties": dict(properties.most_common())})
    return found


def record(folder: Path) -> None:
    lines = lines_of(folder)
    kept = ",\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    RECORD.write_text(f"[\n{kept}\n]\n", encoding="utf-8")
    PAGE.write_text(text(lines), encoding="utf-8")


def caught(line: Mapping[str, Any]) -> int:
    """With how many seeds something failed."""
    return sum(count for name, count in line["properties"].items() if name)


def text(lines: Sequence[Line]) -> str:
    mistakes = [line for line in lines if line["mistake"]]
    rows = ["| op | mistake | caught by | caught |", "|---|---|---|---:|"]
    for line in mistakes:
        rows.append(f"| {line['op']} | {line['name']} | {by(line)} | {caught(line)} of {line['seeds']} |")
    numbers = {"mistakes": len(mistakes), "ops": len(OPS), "seeds": SEEDS, "counts": counts(mistakes)}
    return HEAD.format(**numbers, right=right(lines), table="\n".join(rows))


def counts(mistakes: Sequence[Line]) -> str:
    """How many were caught each time, how many were missed, and what is left to judge."""
    missed = sum(caught(line) < line["seeds"] for line in mistakes)
    whole = sum(caught(line) == line["seeds"] >= SEEDS for line in mistakes)
    part = sum(caught(line) == line["seeds"] in range(1, SEEDS) for line in mistakes)
    rows = {
        "caught with each seed": whole,
        "caught with each of fewer seeds, the others not judged yet": part,
        "missed with some seed": missed,
        "not judged yet": len(mistakes) - whole - part - missed,
    }
    return "\n".join(["| mistakes | |", "|---|---:|", *(f"| {name} | {number} |" for name, number in rows.items())])


def by(line: Mapping[str, Any]) -> str:
    names = {name: count for name, count in line["properties"].items() if name}
    if len(line["properties"]) < 2:
        return ", ".join(names)
    return ", ".join(f"{name} {count}" for name, count in names.items())


def right(lines: Sequence[Line]) -> str:
    """A row a backend."""
    rows = ["| backend | ops | runs | failed |", "|---|---:|---:|---:|"]
    for name in records.RIGHT:
        mine = [line for line in lines if not line["mistake"] and line["name"] == name and line["seeds"]]
        runs, failed = sum(line["seeds"] for line in mine), sum(map(caught, mine))
        rows.append(f"| {name} | {len(mine)} | {runs} | {failed} |")
    return "\n".join(rows)
