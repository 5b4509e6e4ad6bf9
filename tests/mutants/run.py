"""Mutation testing: small mistakes are made in a room's files, and the tests that can reach each must notice it.

Nothing is made in this tree: each job has a copy. What was judged is kept in --out for these sources and tests, so a
run that was broken off goes on where it was. Exit codes: 0 done, 1 a room is below 90% or a control failed, 3 nothing
failed and mutants are left (--within).
"""

import argparse
import hashlib
import json
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from gpu.run import commit, write  # noqa: E402
from mutants import changes, judge, page  # noqa: E402
from mutants.draw import COUNT, applied, draw  # noqa: E402
from mutants.page import KILLED, SURVIVED  # noqa: E402

OUT = ROOT / "out/mutants"
RECORDS = ROOT / "docs/mutants"
ROOMS = {"reference": "reference"} | {
    room: f"zigzag/{room}" for room in ("plans", "caches", "running", "measuring", "generation", "chat")
}
OTHERS = {room: f"zigzag/{room}" for room in ("ops", "files", "models", "sizes")} | {"backends": "backends"}
PRODUCT = ("reference", "backends", "zigzag")
LIBRARIES = ("numpy", "torch", "transformers", "triton", "pytest", "hypothesis")  # with others, tests may fail
BUDGET = 45.0  # seconds of tests a mutant
FILE_LIMIT = 1200.0  # seconds of a test file while its lines are recorded
LONGEST = 10.0  # seconds of a test that is asked
SHARE = 0.9
CUPY = ("attention_kernel", "attention_many", "attention_mma", "verification_kernel")
# Tests of this tool; what builds in a folder of its own; kernels of CuPy, which are compiled anew in each copy.
NOT_JUDGES = ("tests/test_mutants.py", "tests/test_packaging.py", *(f"tests/test_cupy_{kernel}.py" for kernel in CUPY))

Test = dict[str, Any]  # seconds, lines


class Inputs:
    """Hashes of what a verdict hangs on, as it was when this was made: what is edited later is not judged."""

    def __init__(self, root: Path) -> None:
        def contents(*folders: str) -> dict[str, bytes]:
            paths = (path for folder in folders for path in (root / folder).rglob("*.py"))
            return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}

        every = contents("tests").items()
        self.files = {file: content for file, content in every if not file.startswith("tests/mutants/")}
        self.product, self.tests = _hash(contents(*PRODUCT)), _hash(self.files)
        self.versions = _hash({name: version_of(name).encode() for name in LIBRARIES}) + sys.version.split()[0]

    def of_file(self, file: str) -> str:
        """Of one file of tests, with the helpers beside it that it imports, and the product."""
        found: dict[str, bytes] = {}
        left = [file, "tests/conftest.py"]
        while left:
            name = left.pop()
            if name in self.files and name not in found:
                found[name] = self.files[name]
                imported = re.findall(rb"^(?:from|import) (\w+)", found[name], flags=re.MULTILINE)
                left += [f"tests/{module.decode()}.py" for module in imported]
        return f"{self.versions}-{self.product}-{_hash(found)}"

    def of_all(self) -> str:
        return f"{self.versions}-{self.product}-{self.tests}"


def version_of(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return ""


def _hash(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(name.encode() + b"\0" + content)
    return digest.hexdigest()[:12]


class Jobs:
    """Copies of the tree, one for each job at a time; none begins after `end`."""

    def __init__(self, root: Path, jobs: int, within: float | None) -> None:
        self.root, self.jobs = root, jobs
        self.end = None if within is None else time.monotonic() + within

    def left(self, limit: float) -> float:
        return limit if self.end is None else min(limit, self.end - time.monotonic())

    def each(self, tasks: Sequence[Any], do: Callable[[Path, Any], None]) -> None:
        if not tasks:
            return
        with ExitStack() as stack:
            trees: SimpleQueue[Path] = SimpleQueue()
            for _ in range(min(self.jobs, len(tasks))):
                trees.put(stack.enter_context(judge.copy_of(self.root)))

            def one(task: Any) -> None:
                if self.left(2) < 2:
                    return
                tree = trees.get()
                try:
                    do(tree, task)
                finally:
                    trees.put(tree)

            pool = ThreadPoolExecutor(self.jobs)
            try:
                list(pool.map(one, tasks))
            finally:
                pool.shutdown(cancel_futures=True)  # an interruption ends it soon


def test_files(root: Path) -> list[str]:
    """Files of tests, and modules with examples in their docstrings."""
    tests = [path for path in (root / "tests").rglob("test_*.py") if "benchmarks" not in path.parts]
    examples = [
        path
        for folder in ("zigzag", "zigzag/reference", "zigzag/backends")
        for path in sorted((root / folder).rglob("*.py"))
        if ">>> " in path.read_text(encoding="utf-8") and "conformance" not in path.parts
    ]
    found = dict.fromkeys(path.relative_to(root).as_posix() for path in sorted(tests) + examples)
    return [file for file in found if file not in NOT_JUDGES]


def map_of(root: Path, out: Path, jobs: Jobs, inputs: Inputs) -> tuple[dict[str, Test], list[str]]:
    """(tests and what they reach, files of tests whose lines are not recorded yet)."""
    folder = out / "lines"

    def place(file: str) -> Path:
        return folder / (file.replace("/", "--") + ".json")

    def known(file: str) -> dict[str, Test] | None:
        content = read(place(file))
        return content["tests"] if content.get("for") == inputs.of_file(file) else None

    def record(tree: Path, file: str) -> None:
        limit = jobs.left(FILE_LIMIT)
        found = judge.lines_of(tree, file, limit)
        if found is None and limit < FILE_LIMIT:
            return
        write(place(file), json.dumps({"for": inputs.of_file(file), "tests": found or {}}))
        print(f"lines of {file}: {len(found or {})} tests{'' if found is not None else ', out of time'}", flush=True)

    files = test_files(root)
    jobs.each([file for file in files if known(file) is None], record)
    every = {file: known(file) for file in files}
    tests = {name: test for found in every.values() for name, test in (found or {}).items()}
    for test in tests.values():
        test["lines"] = {file: int(bits, 16) for file, bits in test["lines"].items()}
    return tests, [file for file, found in every.items() if found is None]


def judges(mutant: Mapping[str, Any], tests: Mapping[str, Test]) -> list[str]:
    """The tests that can reach a mutant, in the order in which they are asked.

    Fast ones first, and of a function with many cases each case counts as slower than the one before. What an import
    runs, no test runs for itself: asked are all that reach its file, or its room, where the file only holds names, and
    the room's own tests, of which some only look at a table.
    """
    first, last = mutant["lines"]
    wanted = sum(1 << line for line in range(first, last + 1))
    tests = {name: test for name, test in tests.items() if test["seconds"] <= LONGEST}
    reach = {name for name, test in tests.items() if test["lines"].get(mutant["file"], 0) & wanted}
    if mutant["at_import"]:
        reach |= {name for name, test in tests.items() if mutant["file"] in test["lines"]}
        room = mutant["file"].rpartition("/")[0] + "/"
        reach = reach or {name for name, test in tests.items() if any(f.startswith(room) for f in test["lines"])}
        reach |= {name for name in tests if name.startswith(f"tests/{room.removeprefix('zigzag/')}")}
    by_function = defaultdict(list)
    for name in reach:
        by_function[name.partition("[")[0]].append(name)
    ranked = []
    for names in by_function.values():
        names.sort(key=lambda name: (tests[name]["seconds"], name))
        ranked += [((tests[name]["seconds"] + 0.01) * place, name) for place, name in enumerate(names, 1)]
    return [name for _, name in sorted(ranked)]


def batches(names: Sequence[str], tests: Mapping[str, Test], budget: float) -> list[list[str]]:
    """A few tests, more, and more, until their seconds reach the budget: most mutants die at once."""
    found: list[list[str]] = [[]]
    size, spent = 12, 0.0
    for name in names:
        if spent > budget:
            break
        spent += tests[name]["seconds"]
        if len(found[-1]) == size:
            found.append([])
            size *= 5
        found[-1].append(name)
    return [batch for batch in found if batch]


def verdict(tree: Path, mutant: Mapping[str, Any], tests: Mapping[str, Test], budget: float, left: float) -> Any:
    """What is known of a mutant now; None if the time ran out for another reason than it."""
    names = judges(mutant, tests)
    text = applied(dict(mutant), (tree / mutant["file"]).read_text(encoding="utf-8"))
    asked = 0
    begin = time.monotonic()
    with judge.changed(tree, mutant["file"], text):
        waiting = batches(names, tests, budget)
        while waiting:
            batch = waiting.pop(0)
            limit = 20 + 5 * sum(tests[name]["seconds"] for name in batch)
            given = min(limit, left - (time.monotonic() - begin))
            found = judge.outcome_of(tree, batch, given)
            if found is None:
                return {"verdict": KILLED, "by": batch[0], "how": "out of time or dead"} if given == limit else None
            asked += len(found["ran"])
            if found["failures"]:
                name, how = next(iter(found["failures"].items()))
                if not passes_alone(tree, name, tests):
                    return {"verdict": KILLED, "by": name, "how": how}
                waiting[:0] = [rest] if (rest := batch[batch.index(name) + 1 :]) else []
            elif not found["ran"]:  # not even conftest.py could be read
                return {"verdict": KILLED, "by": batch[0], "how": "no test could be collected"}
    return {"verdict": SURVIVED, "asked": asked, "reached_by": len(names)}


def passes_alone(tree: Path, name: str, tests: Mapping[str, Test]) -> bool:
    """Whether a test that failed does so after others only: then it says nothing of the mistake."""
    found = judge.outcome_of(tree, [name], 60 + 5 * tests[name]["seconds"]) if name in tests else None
    return found is not None and not found["failures"] and bool(found["ran"])


def judge_room(room: str, folder: str, root: Path, out: Path, jobs: Jobs, given: Any) -> dict[str, Any]:
    """Draws, judges what is not judged yet, checks the killers on the unchanged tree; gives the room's state."""
    inputs = Inputs(root)
    state = drawn(room, folder, root, out, inputs, given)
    tests, unknown = map_of(root, out, jobs, inputs)
    if unknown:
        print(f"{room}: the lines of {len(unknown)} files of tests are not recorded yet")
        return state
    tests = {name: test for name, test in tests.items() if name not in state["unreliable"]}
    one_writes = Lock()

    def do(tree: Path, mutant: dict[str, Any]) -> None:
        found = verdict(tree, mutant, tests, given.budget, jobs.left(1e9))
        if found is None:
            return
        by = found.get("by", "").partition("::")[0]
        with one_writes:
            mutant.update(found | {"for": inputs.of_file(by) if by else inputs.of_all()})
            if found["verdict"] == SURVIVED:
                print(f"{mutant['id']} survived: {mutant['file']}:{mutant['line']} {mutant['reads']}", flush=True)
            write(out / f"{room}.json", page.as_json(state))

    jobs.each([mutant for mutant in state["mutants"] if "verdict" not in mutant], do)
    control(room, state, jobs, tests)
    write(out / f"{room}.json", page.as_json(state))
    return state


def drawn(room: str, folder: str, root: Path, out: Path, inputs: Inputs, given: Any) -> dict[str, Any]:
    """The room's mutants, with the verdicts that still hold. Without cosmic-ray, those that were drawn before."""
    before = read(out / f"{room}.json")
    if not changes.COSMIC or find_spec("cosmic_ray") is not None:
        mutants, population = draw(root, folder, given.count)
    elif before.get("product") == inputs.product:
        mutants, population = before["mutants"], before["population"]
    else:
        raise SystemExit(f"drawing {room} needs cosmic-ray: pip install -e '.[mutants]'")
    old = {mutant["id"]: mutant for mutant in before.get("mutants", ())}
    kept = ("verdict", "by", "how", "asked", "reached_by", "for")
    made = []
    for mutant in mutants:
        bare = {key: value for key, value in mutant.items() if key not in kept}
        known = old.get(mutant["id"], {})
        file = known.get("by", "").partition("::")[0]
        same = known.get("for") == (inputs.of_file(file) if file else inputs.of_all())
        again = given.again or (given.survivors and known.get("verdict") == SURVIVED)
        made.append(bare | ({key: known[key] for key in kept if key in known} if same and not again else {}))
    state = {"room": room, "commit": commit(), "population": population, "product": inputs.product, "mutants": made}
    state["unreliable"] = before.get("unreliable", [])
    write(out / f"{room}.json", page.as_json(state))
    return state


def control(room: str, state: dict[str, Any], jobs: Jobs, tests: Mapping[str, Test]) -> None:
    """Tests that killed must pass where nothing was changed, each file's in another order; else their verdicts go."""
    killers = {mutant["by"] for mutant in state["mutants"] if mutant.get("verdict") == KILLED} & set(tests)
    by_file = defaultdict(list)
    for name in sorted(killers, reverse=True):
        by_file[name.partition("::")[0]].append(name)
    wrong: set[str] = set()

    def do(tree: Path, names: list[str]) -> None:
        found = judge.outcome_of(tree, names, 60 + 5 * sum(tests[name]["seconds"] for name in names), first=False)
        wrong.update(set(names) - set(found["ran"]) | set(found["failures"]) if found else names)

    jobs.each(list(by_file.values()), do)
    for mutant in state["mutants"]:
        if mutant.get("by") in wrong:
            for key in ("verdict", "by", "how", "for"):
                mutant.pop(key, None)
    state["control"] = {"tests": len(killers), "failed": sorted(wrong)}
    state["unreliable"] = sorted({*state.get("unreliable", ()), *wrong})  # not asked again
    print(f"{room}: control of {len(killers)} tests, {len(wrong)} failed on the unchanged tree: {sorted(wrong)}")


def read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--room", action="append", choices=[*ROOMS, *OTHERS], help="only this one; may be repeated")
    parser.add_argument("--count", type=int, default=COUNT, metavar="N", help=f"mutants a room (default {COUNT})")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="copies of the tree at once (default 2)")
    parser.add_argument("--within", type=float, metavar="SECONDS", help="stop after so long; run again for the rest")
    parser.add_argument("--budget", type=float, default=BUDGET, metavar="SECONDS", help="of tests that a mutant meets")
    parser.add_argument("--again", action="store_true", help="forget what was judged before")
    parser.add_argument("--survivors", action="store_true", help="judge the survivors again")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FOLDER", help="what is kept between runs")
    parser.add_argument("--draw", action="store_true", help="only draw; a machine without cosmic-ray can judge then")
    parser.add_argument("--record", action="store_true", help="only write docs/mutants from what is in --out")
    given = parser.parse_args(arguments)
    rooms = {room: (ROOMS | OTHERS)[room] for room in given.room or ROOMS}
    if given.record:
        page.record(given.out, RECORDS)
        return 0
    judge.prepare()
    jobs, out = Jobs(ROOT, given.jobs, given.within), given.out.resolve()
    codes = [0]
    for room, folder in rooms.items():
        if given.draw:
            state = drawn(room, folder, ROOT, out, Inputs(ROOT), given)
            print(f"{room}: {len(state['mutants'])} of {state['population']}")
            continue
        state = judge_room(room, folder, ROOT, out, jobs, given)
        print(page.line(state), flush=True)
        codes.append(page.code(state, SHARE))
    return 1 if 1 in codes else max(codes)


if __name__ == "__main__":
    sys.exit(main())
