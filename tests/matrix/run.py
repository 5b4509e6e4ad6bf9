"""Runs the suite with the lowest versions that are allowed and with the newest, in parts: the files of tests.

What passed is kept in out/matrix for these sources and versions, so a run that was broken off goes on where it was.
`--record` writes what is known into docs/matrix. Exit codes: 0 all passed, 1 a part failed or an environment could not
be made, 3 nothing failed and parts are left (--within).
"""

import argparse
import hashlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from gpu.run import Part, commit, run_part, write  # noqa: E402
from matrix import environments, page  # noqa: E402
from matrix.page import FAILED, LEFT, PASSED  # noqa: E402

OUT = ROOT / "out/matrix"
RECORDS = ROOT / "docs/matrix"
LIMIT = 2400.0  # seconds of a part
PRODUCT = ("reference", "backends", "zigzag", "pyproject.toml")
DOCTESTS = "zigzag"  # examples in docstrings, of reference/ and backends/ too
# Tools of this repository, which copy or build it and hang on no version; times; and vLLM, which brings its own.
NOT_HERE = ("test_mutants.py", "test_packaging.py", "test_release.py", "test_matrix.py", "benchmarks", "engine")
QUIET = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def names(root: Path) -> list[str]:
    """The parts: files of tests, and the docstrings."""
    tests = (path.relative_to(root) for path in sorted((root / "tests").rglob("test_*.py")))
    return [*(path.as_posix() for path in tests if not set(path.parts) & set(NOT_HERE)), DOCTESTS]


def fingerprint(root: Path, part: str) -> str:
    """Of the product and of the part's own tests: what is changed elsewhere leaves what passed."""
    digest = hashlib.sha256()
    for top in (*PRODUCT, part):
        place = root / top
        files = (
            [place] if place.is_file() else (path for path in place.rglob("*") if path.suffix in (".py", ".cu", ".cuh"))
        )
        for path in sorted(files):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def part_of(python: Path, name: str) -> Part:
    return Part(
        name, ((str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", name),), QUIET, LIMIT
    )


def judged(part: Part, folder: Path, limit: float) -> dict[str, Any]:
    """Outcome, pytest's counts, the tests that failed, seconds."""
    found = run_part(part, folder / "logs", limit)
    log = folder / "logs" / (re.sub(r"[^\w.-]+", "_", part.name) + ".log")
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", log.read_text(encoding="utf-8"), flags=re.MULTILINE)
    counts = {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", found["last"])}
    outcome = LEFT if found["code"] is None and limit < part.limit else found["outcome"]
    told = {} if counts else {"last": found["last"]}
    return {"outcome": outcome, "counts": counts, "failed": failed, "seconds": found["seconds"], **told}


def run(
    every: Sequence[str],
    folder: Path,
    versions: Mapping[str, str],
    *,
    root: Path = ROOT,
    only: str = "",
    end: float | None = None,
    ask: Callable[[Part, Path, float], dict[str, Any]] = judged,
) -> dict[str, Any]:
    """Runs the parts with `only` in their name that have not passed as they are now; gives what is known of all."""
    state = read(folder, versions)
    kept = {name: found for name, found in state.items() if found["for"] == fingerprint(root, name)}
    for name in every:
        left = LIMIT if end is None else min(LIMIT, end - time.monotonic())
        if only not in name or kept.get(name, {}).get("outcome") == PASSED or left < 1:
            continue
        found = ask(part_of(folder / "venv/bin/python", name), folder, left)
        kept[name] = found | {"for": fingerprint(root, name), "commit": commit()}
        print(f"{folder.name:7} {name:40} {page.cell(kept[name])} ({found['seconds']:.0f} s)", flush=True)
        content = {"environment": folder.name, "versions": dict(versions), "parts": kept}
        write(folder / "state.json", json.dumps(content, indent=1) + "\n")
    return {name: kept.get(name, {"outcome": LEFT}) for name in every}


def read(folder: Path, versions: Mapping[str, str]) -> dict[str, Any]:
    """The parts of an earlier run with the same versions."""
    try:
        content = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return dict(content["parts"]) if content["versions"] == dict(versions) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def code(parts: Iterable[Mapping[str, Any]]) -> int:
    outcomes = [part["outcome"] for part in parts]
    return 1 if FAILED in outcomes else 3 if LEFT in outcomes else 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environment", nargs="?", choices=("lowest", "newest"), help="one of the two (default both)")
    parser.add_argument("--within", type=float, metavar="SECONDS", help="stop after so long; run again for the rest")
    parser.add_argument("--only", default="", metavar="WORD", help="only parts with this in their name")
    parser.add_argument("--list", action="store_true", help="name the parts")
    parser.add_argument("--record", action="store_true", help="write what is known into docs/matrix, and run nothing")
    given = parser.parse_args(arguments)
    every = names(ROOT)
    if not [name for name in every if given.only in name]:
        parser.error(f"--only: no part has {given.only!r} in its name; --list names them")
    if given.list:
        print("\n".join(every))
        return 0
    if given.record:
        page.record(OUT, RECORDS, every)
        return 0
    end = None if given.within is None else time.monotonic() + given.within
    asked: list[Mapping[str, Any]] = []
    for environment in environments.environments((ROOT / "pyproject.toml").read_text(encoding="utf-8")):
        if given.environment in (None, environment.name):
            folder = OUT / environment.name
            if fault := environments.make(environment, folder):
                print(f"{environment.name}: {fault}", file=sys.stderr)
                return 1
            found = run(every, folder, environments.versions(folder), only=given.only, end=end)
            asked += [part for name, part in found.items() if given.only in name]
    outcomes = [part["outcome"] for part in asked]
    print(", ".join(f"{outcomes.count(kind)} {kind}" for kind in (PASSED, FAILED, LEFT) if kind in outcomes))
    return code(asked)


if __name__ == "__main__":
    sys.exit(main())
