"""Runs what only a GPU can show, in parts of less than nine minutes; standard library only.

What passed is kept in out/test-gpu/state.json for these sources and this device, so a run that was broken off goes on
where it was. Exit codes: 0 all passed, 1 a part failed, 2 no GPU, 3 nothing failed and parts are left (--within).
"""

import argparse
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from kernels import NAMES  # noqa: E402

OUT = ROOT / "out/test-gpu"
LIMIT = 530  # seconds of a part
RACE_LIMIT = 240
PASSED, FAILED, UNFINISHED, LEFT = "passed", "failed", "did not finish", "left"
KEPT = (PASSED, UNFINISHED)
SOURCES = (".py", ".cu", ".cuh", ".h")

_FACTS = """
import importlib, json, platform
import torch
facts = {"device": torch.cuda.get_device_name() if torch.cuda.is_available() else None}
facts["versions"] = {"python": platform.python_version()}
for name in ("torch", "triton", "cupy", "numpy"):
    try:
        facts["versions"][name] = importlib.import_module(name).__version__
    except Exception as failure:
        facts["versions"][name] = type(failure).__name__
print(json.dumps(facts))
"""
_CHECK = "import sys; from zigzag.backends import get_backend; get_backend(sys.argv[1])"


@dataclass(frozen=True)
class Part:
    """Commands that must all exit with 0, one after the other, within `limit` seconds together.

    may_run_out: running out of time is told, and is no failure
    """

    name: str
    commands: Sequence[Sequence[str]]
    environment: Mapping[str, str] = field(default_factory=dict)
    limit: float = LIMIT
    may_run_out: bool = False


def parts(python: str, sanitizer: str) -> list[Part]:
    """The parity suite on each backend, then each kernel under compute-sanitizer."""
    raw = {way: {"ZIGZAG_CUPY_RAW": flag} for way, flag in (("composed", "0"), ("raw", "1"))}
    suites = [("torch", "torch", {}), ("triton", "triton", {}), *((f"cupy {way}", "cupy", raw[way]) for way in raw)]
    workers = {"triton": "12"}  # it compiles
    found = [
        Part(
            f"parity {name}",
            (
                (python, "-c", _CHECK, backend),  # a backend that is missing would be skipped, and pass
                (
                    python,
                    "-m",
                    "pytest",
                    "-q",
                    "tests/parity",
                    "--backend",
                    backend,
                    "--device",
                    "cuda",
                    "-n",
                    workers.get(backend, "3"),
                ),
            ),
            environment,
        )
        for name, backend, environment in suites
    ]
    names = ("test_fixed_runner", "test_noise", "test_ahead", "running/test_transfers")
    files = [f"tests/{name}.py" for name in names]
    steps = (*files, "-k", "graphs or beside_transformers or waits", "--device", "cuda")
    found.append(Part("decoding steps as CUDA graphs", ((python, "-m", "pytest", "-q", *steps),)))
    models = ("tests/test_gpu_models.py", "--device", "cuda")
    found.append(Part("models under plans", ((python, "-m", "pytest", "-q", *models),)))
    prompts = ("tests/test_gpu_prompts.py", "tests/parity/internals/test_prompt_attention.py", "--device", "cuda")
    found.append(Part("prompts in pieces, batches", ((python, "-m", "pytest", "-q", *prompts),)))
    plain = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # each tensor in memory of its own, so that its end is seen
    for tool, options, limit in (("memcheck", ("--report-api-errors", "no"), LIMIT), ("racecheck", (), RACE_LIMIT)):
        found += [
            Part(
                f"{tool} {kernel}",
                (
                    (
                        sanitizer,
                        "--tool",
                        tool,
                        *options,
                        "--error-exitcode",
                        "9",
                        python,
                        "tests/gpu/small_shapes.py",
                        kernel,
                    ),
                ),
                plain,
                limit,
                may_run_out=tool == "racecheck",
            )
            for kernel in NAMES
        ]
    return found


def run_part(part: Part, folder: Path, limit: float) -> dict[str, Any]:
    """Outcome, exit code (None: out of time), last line and seconds; what it printed is in a file of its name."""
    folder.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    log = folder / (re.sub(r"[^\w.-]+", "_", part.name) + ".log")
    with log.open("w+", encoding="utf-8", errors="replace") as file:
        code: int | None = 0
        for command in part.commands:
            code = _call(command, part.environment, file, limit - (time.monotonic() - begin))
            if code != 0:
                break
    outcome = {0: PASSED, None: UNFINISHED if part.may_run_out else FAILED}.get(code, FAILED)
    seconds = round(time.monotonic() - begin, 1)
    lines = [line.strip() for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    if code is None:
        last = f"stopped after {seconds:.0f} s: {last}"
    return {"outcome": outcome, "code": code, "last": last, "seconds": seconds}


def _call(command: Sequence[str], environment: Mapping[str, str], file: Any, limit: float) -> int | None:
    """The exit code, None if the time ran out; all processes of the command are ended then."""
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    given = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    given.pop("TRITON_INTERPRET", None)  # it would leave the GPU out
    try:
        process = subprocess.Popen(
            command, cwd=ROOT, env=given, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    except OSError as failure:
        file.write(f"{command[0]}: {failure.strerror or failure}\n")
        return 127
    try:
        return process.wait(max(0.1, limit))
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run(
    every: Sequence[Part],
    facts: Mapping[str, Any],
    folder: Path,
    *,
    only: str = "",
    within: float | None = None,
    again: bool = False,
    jobs: int = 1,
) -> int:
    """Runs the parts with `only` in their name that have not passed for these facts; gives the exit code.

    The record is of every part, also of those that were not asked for now.
    """
    wanted = [part for part in every if only in part.name]
    state = read_state(folder, facts)
    if again:
        state = {name: found for name, found in state.items() if only not in name}
    end = None if within is None else time.monotonic() + within
    one_writes = Lock()

    def do(part: Part) -> None:
        left = None if end is None else end - time.monotonic()
        if left is not None and left < 1:
            return
        limit = part.limit if left is None else min(part.limit, left)
        found = run_part(part, folder, limit)
        if found["code"] is None and limit < part.limit:
            found["outcome"] = LEFT  # not its fault
        with one_writes:
            state[part.name] = found
            print(line_of(part.name, found), flush=True)
            write(folder / "state.json", json.dumps({"facts": facts, "parts": state}, indent=1) + "\n")

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(do, [p for p in wanted if state.get(p.name, {}).get("outcome") not in KEPT]))
    outcomes = [state.get(part.name, {}).get("outcome", LEFT) for part in wanted]
    record = record_of(every, state, facts)
    write(folder / "record.txt", record)
    print(record.splitlines()[-1])
    return 1 if FAILED in outcomes else 3 if LEFT in outcomes else 0


def read_state(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of an earlier run, if it was of the same sources on the same device with the same versions."""
    try:
        content = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        same = all(content["facts"][key] == facts[key] for key in ("commit", "sources", "device", "versions"))
        return dict(content["parts"]) if same else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def line_of(name: str, found: Mapping[str, Any]) -> str:
    return f"{name:32} {found['outcome']:15} {found['seconds']:7.1f} s  {found['last']}"


def record_of(every: Sequence[Part], state: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """The whole record as text; its last line is the summary."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    lines = [
        "Every op and kernel on a GPU against the NumPy reference",
        f"device   {facts['device']}",
        f"versions {versions}",
        f"commit   {facts['commit']}, sources {facts['sources']}",
        f"command  {facts['command']}",
        "",
    ]
    missing = {"outcome": LEFT, "seconds": 0.0, "last": "not run"}
    lines += [line_of(part.name, state.get(part.name, missing)) for part in every]
    outcomes = [state.get(part.name, missing)["outcome"] for part in every]
    counts = (f"{outcomes.count(kind)} {kind}" for kind in (PASSED, FAILED, UNFINISHED, LEFT) if kind in outcomes)
    return "\n".join([*lines, "", ", ".join(counts)]) + "\n"


def write(path: Path, text: str) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(path.name + ".part")
    half.write_text(text, encoding="utf-8")
    half.replace(path)


def facts_of(python: str) -> dict[str, Any] | str:
    """What the record says of the machine and the sources, or why there is no GPU."""
    probe = subprocess.run([python, "-c", _FACTS], capture_output=True, text=True, cwd=ROOT)
    if probe.returncode:
        return (probe.stderr.strip().splitlines() or ["PyTorch cannot be asked"])[-1]
    facts: dict[str, Any] = json.loads(probe.stdout)
    if facts["device"] is None:
        return "PyTorch finds no CUDA device"
    return facts | {"commit": commit(), "sources": sources(), "command": shlex.join(["python", *sys.argv])}


def commit() -> str:
    if given := os.environ.get("ZIGZAG_COMMIT"):  # for a copy without its history
        return given
    try:
        git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def sources(root: Path = ROOT) -> str:
    """A hash of all Python and CUDA files, which a dirty tree changes and its commit does not."""
    digest = hashlib.sha256()
    for folder in ("reference", "backends", "zigzag", "tests"):
        for path in sorted(path for path in (root / folder).rglob("*") if path.suffix in SOURCES):
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--within", type=float, metavar="SECONDS", help="stop after so long; run again for the rest")
    parser.add_argument("--only", default="", metavar="WORD", help="only parts with this in their name")
    parser.add_argument("--again", action="store_true", help="forget what passed before")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="parts at once (default 1)")
    parser.add_argument("--list", action="store_true", help="name the parts")
    parser.add_argument("--sanitizer", default="compute-sanitizer", metavar="PATH", help="where compute-sanitizer is")
    given = parser.parse_args(arguments)
    every = parts(sys.executable, given.sanitizer)
    named = [part.name for part in every if given.only in part.name]
    if not named:
        parser.error(f"--only: no part has {given.only!r} in its name; --list names them")
    if given.list:
        print("\n".join(named))
        return 0
    facts = facts_of(sys.executable)
    if isinstance(facts, str):
        print(f"test-gpu needs a CUDA device and PyTorch: {facts}", file=sys.stderr)
        return 2
    return run(every, facts, OUT, only=given.only, within=given.within, again=given.again, jobs=given.jobs)


if __name__ == "__main__":
    sys.exit(main())
