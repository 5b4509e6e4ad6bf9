"""Broken backends, each judged by the kit several times: an op with one mistake must fail, a right one must pass.

What was judged is kept in --out for these sources and tests, so a run that was broken off goes on where it was. Exit
codes: 0 every mistake was caught with each seed and nothing else failed, 1 not so, 3 some are left (--within).
"""

import argparse
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("OMP_NUM_THREADS", "1")

from broken import page, records  # noqa: E402
from broken.judge import judge, registered  # noqa: E402
from broken.mistakes import right  # noqa: E402
from broken.page import SEEDS  # noqa: E402
from broken.records import Subject  # noqa: E402

from zigzag.cli.conform import ops_of  # noqa: E402

OUT = ROOT / "out/broken"
Task = tuple[Subject, int]


def verdict(op: str, name: str, is_mistake: bool, seed: int) -> dict[str, Any]:
    """By names, as they go to another process."""
    subject = next(s for s in records.subjects([op]) if s.name == name and bool(s.mistake) == is_mistake)
    if subject.mistake is None and name != "wrapped":
        return judge(name, op, seed)
    function = right(op) if subject.mistake is None else subject.mistake.make()
    with registered(op, function) as backend:
        return judge(backend, op, seed)


def verdicts(tasks: Sequence[Task], jobs: int, end: float) -> Iterator[tuple[Task, dict[str, Any]]]:
    """As they come; none is begun after `end`."""
    given = [(s.op, s.name, s.mistake is not None, seed) for s, seed in tasks]
    if jobs == 1:
        for task, words in zip(tasks, given, strict=True):
            if time.monotonic() > end:
                return
            yield task, verdict(*words)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        for begin in range(0, len(tasks), 8 * jobs):
            if time.monotonic() > end:
                return
            some = slice(begin, begin + 8 * jobs)
            yield from zip(tasks[some], pool.map(verdict, *zip(*given[some], strict=True)), strict=True)


def is_good(subject: Subject, found: dict[str, Any]) -> bool:
    return bool(found["property"]) == (subject.mistake is not None)


def in_order(found: Sequence[Subject], seeds: int) -> Iterator[Task]:
    """Two subjects of each op with all seeds, then the next two, so that a run that is broken off tells of all ops."""
    ranks: Counter[str] = Counter()
    rounds: defaultdict[int, list[Subject]] = defaultdict(list)
    for subject in found:
        rounds[ranks[subject.op] // 2].append(subject)
        ranks[subject.op] += 1
    for _, some in sorted(rounds.items()):
        yield from ((subject, seed) for seed in range(1, seeds + 1) for subject in some)


def run(found: Sequence[Subject], seeds: int, out: Path, jobs: int, end: float) -> int:
    """The exit code."""
    states = {subject: records.state_of(subject) for subject in found}
    known = {subject: records.read(out, subject, states[subject]) for subject in found}
    tasks = [(s, seed) for s, seed in in_order(found, seeds) if str(seed) not in known[s]]
    for (subject, seed), one in verdicts(tasks, jobs, end):
        known[subject][str(seed)] = one
        records.write(out, subject, states[subject], known[subject])
        if not is_good(subject, one):
            what = "not caught" if subject.mistake else f"{one['test']}: {one['message']}"
            print(f"{subject.op}: {subject.name}, seed {seed}: {what}", flush=True)
    wanted = [str(seed) for seed in range(1, seeds + 1)]
    left = sum(seed not in known[s] for s in found for seed in wanted)
    bad = sum(not is_good(s, known[s][seed]) for s in found for seed in wanted if seed in known[s])
    mistakes = sum(s.mistake is not None for s in found)
    print(f"{mistakes} mistakes, {len(found) - mistakes} right ops, {seeds} seeds: {bad} wrong verdicts, {left} left")
    return 1 if bad else 3 if left else 0


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], metavar="OP", help="an op, or several: merge,sample")
    parser.add_argument("--mistakes", action="store_true", help="no right backends")
    parser.add_argument("--right", action="append", default=[], metavar="NAME", help="only this right backend")
    parser.add_argument("--seeds", type=int, default=SEEDS, metavar="N", help=f"1 to N; {SEEDS} unless told otherwise")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes")
    parser.add_argument("--within", type=float, metavar="SECONDS", help="begin nothing later")
    parser.add_argument("--list", action="store_true", help="name the mistakes, run nothing")
    parser.add_argument("--page", action="store_true", help="write the record and its page out of what was judged")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args(words)
    end = time.monotonic() + given.within if given.within is not None else float("inf")
    found = records.subjects(ops_of(given.only))
    if given.mistakes or given.list:
        found = [subject for subject in found if subject.mistake is not None]
    if given.right:
        found = [subject for subject in found if subject.mistake is None and subject.name in given.right]
    if given.list:
        print("\n".join(f"{subject.op}: {subject.name}" for subject in found))
        return 0
    if given.page:
        page.record(given.out)
        return 0
    return run(found, given.seeds, given.out, given.jobs, end)


if __name__ == "__main__":
    sys.exit(main())
