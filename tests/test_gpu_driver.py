"""What `make test-gpu` does, shown with other parts; and its small shapes, on interpreted kernels."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu import run
from gpu.kernels import CUPY, NAMES, TRITON
from gpu.run import Part

FACTS = {
    "device": "a card",
    "versions": {"torch": "2"},
    "commit": "c0ffee",
    "sources": "aa",
    "command": "python run.py",
}


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def counted(folder: Path, name: str, code: str = "") -> Part:
    """Leaves a byte in a file each time that it runs."""
    return Part(name, (python(f"open({str(folder / name)!r}, 'a').write('x'); {code}"),))


def runs(folder: Path, name: str) -> int:
    path = folder / name
    return len(path.read_text()) if path.exists() else 0


def outcomes(folder: Path) -> dict[str, str]:
    parts = json.loads((folder / "state.json").read_text())["parts"]
    return {name: found["outcome"] for name, found in parts.items()}


def test_all_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = Part("two", (python("print('first')"), python("import os; print('flag', os.environ['FLAG'])")), {"FLAG": "7"})
    assert run.run([Part("one", (python("print('1 passed')"),)), two], FACTS, tmp_path) == 0
    record = (tmp_path / "record.txt").read_text()
    for word in ("a card", "torch 2", "c0ffee", "python run.py", "1 passed", "flag 7", "2 passed"):
        assert word in record
    assert capsys.readouterr().out.endswith("2 passed\n")
    assert "first\nflag 7" in (tmp_path / "two.log").read_text()


def test_a_failure_is_the_exit_code_and_the_rest_goes_on(tmp_path: Path) -> None:
    parts = [
        Part("bad", (python("print('1 failed'); exit(9)"), python("print('never')"))),
        counted(tmp_path, "good"),
        Part("absent", (("no-such-sanitizer",),)),
    ]
    assert run.run(parts, FACTS, tmp_path) == 1
    assert outcomes(tmp_path) == {"bad": "failed", "good": "passed", "absent": "failed"}
    record = (tmp_path / "record.txt").read_text()
    assert "1 failed" in record and "never" not in record and "no-such-sanitizer: No such file" in record
    assert record.endswith("\n1 passed, 2 failed\n")


def test_what_passed_is_not_run_again(tmp_path: Path) -> None:
    parts = [counted(tmp_path, "good"), counted(tmp_path, "bad", "exit(1)")]
    for _ in range(2):
        assert run.run(parts, FACTS, tmp_path) == 1
    assert (runs(tmp_path, "good"), runs(tmp_path, "bad")) == (1, 2)
    assert run.run(parts, FACTS, tmp_path, only="good", again=True) == 0  # the record still has the bad one
    assert runs(tmp_path, "good") == 2 and "1 failed" in (tmp_path / "record.txt").read_text()


@pytest.mark.parametrize("key", ["commit", "sources", "device", "versions"])
def test_other_sources_or_another_device_start_afresh(tmp_path: Path, key: str) -> None:
    part = [counted(tmp_path, "good")]
    run.run(part, FACTS, tmp_path)
    run.run(part, FACTS | {key: "other"} if key != "versions" else FACTS | {key: {}}, tmp_path)
    assert runs(tmp_path, "good") == 2


def test_a_damaged_state_starts_afresh(tmp_path: Path) -> None:
    part = [counted(tmp_path, "good")]
    for text in ("{", "[]", "{}"):
        (tmp_path / "state.json").write_text(text)
        assert run.run(part, FACTS, tmp_path) == 0
    assert runs(tmp_path, "good") == 3


def test_a_part_that_hangs(tmp_path: Path) -> None:
    """It is ended with what it started; only where that is expected it is no failure, and it is not tried again."""
    tries = tmp_path / "tries"
    child = f"import os, time; open({str(tries)!r}, 'a').write(f'{{os.getpid()}} '); time.sleep(99)"
    start = f"subprocess.run([sys.executable, '-c', {child!r}])"
    hang = (python(f"import subprocess, sys; print('here', flush=True); {start}"),)
    assert run.run([Part("hangs", hang, limit=2)], FACTS, tmp_path) == 1
    parts = [Part("races", hang, limit=2, may_run_out=True)]
    assert [run.run(parts, FACTS, tmp_path) for _ in range(2)] == [0, 0]
    assert outcomes(tmp_path) == {"hangs": "failed", "races": "did not finish"}
    assert "stopped after 2 s: here" in (tmp_path / "record.txt").read_text()
    children = tries.read_text().split()
    assert len(children) == 2  # not three: the second run of "races" knew
    for name in children:
        assert not alive(int(name)), "what the part had started went on"


def alive(process: int) -> bool:
    """Whether a process runs; one that has ended may still wait for its parent to ask."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def test_alive_tells_them_apart() -> None:
    with subprocess.Popen(python("input()"), stdin=subprocess.PIPE) as process:
        assert alive(process.pid)
    assert not alive(process.pid)


def test_within_leaves_the_rest(tmp_path: Path) -> None:
    long = Part("long", (python("import time; time.sleep(9)"),))
    parts = [counted(tmp_path, "first"), long, counted(tmp_path, "last")]
    assert run.run(parts, FACTS, tmp_path, within=3.0) == 3
    assert outcomes(tmp_path) == {"first": "passed", "long": "left"}
    assert (tmp_path / "record.txt").read_text().endswith("\n1 passed, 2 left\n")
    parts[1] = counted(tmp_path, "long")
    assert run.run(parts, FACTS, tmp_path) == 0 and runs(tmp_path, "first") == 1


def test_no_gpu_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(run, "_FACTS", 'print(\'{"device": null, "versions": {}}\')')
    assert run.main([]) == 2
    assert "test-gpu needs a CUDA device and PyTorch: PyTorch finds no CUDA device" in capsys.readouterr().err
    monkeypatch.setattr(run, "_FACTS", "import no_such_module")
    assert run.main([]) == 2
    assert "No module named 'no_such_module'" in capsys.readouterr().err


def test_the_parts_cover_every_backend_and_kernel() -> None:
    parts = {part.name: part for part in run.parts("python", "sanitizer")}
    assert {"parity torch", "parity triton", "parity cupy composed", "parity cupy raw"} < set(parts)
    assert {f"{tool} {kernel}" for tool in ("memcheck", "racecheck") for kernel in NAMES} < set(parts)
    assert all(part.limit < 540 for part in parts.values())
    assert [parts[f"parity cupy {way}"].environment["ZIGZAG_CUPY_RAW"] for way in ("composed", "raw")] == ["0", "1"]


def test_a_backend_that_is_missing_fails_its_part(tmp_path: Path) -> None:
    """Its tests alone would be skipped, and the suite pass."""
    check = run.parts(sys.executable, "")[0].commands[0]
    assert run.run([Part("there", ((*check[:-1], "numpy"),))], FACTS, tmp_path) == 0
    assert run.run([Part("not", ((*check[:-1], "no-such-backend"),))], FACTS, tmp_path) == 1


def test_sources_are_hashed() -> None:
    assert len(run.sources()) == 12 and run.sources() == run.sources()
    kinds = {path.suffix for path in (run.ROOT / "backends").rglob("*") if path.is_file()} - {".pyc"}
    assert {".py", ".cu", ".cuh"} <= kinds <= set(run.SOURCES)


@pytest.mark.parametrize("name", ["zigzag/a.py", "backends/raw/a.cu", "backends/raw/a.cuh", "tests/a.h"])
def test_a_changed_source_changes_the_hash(tmp_path: Path, name: str) -> None:
    path, found = tmp_path / name, [run.sources(tmp_path)]
    path.parent.mkdir(parents=True)
    for text in ("one", "another"):
        path.write_text(text)
        found.append(run.sources(tmp_path))
    assert len(set(found)) == 3


def test_every_kernel_has_small_shapes() -> None:
    """Every op that the triton backend does not share with torch, and every raw kernel."""
    pytest.importorskip("triton", reason="triton is not installed")
    from zigzag import reference
    from zigzag.backends import torch as torch_ops
    from zigzag.backends import triton as triton_ops

    own = {op for op in reference.OPS if getattr(triton_ops, op, None) not in (None, getattr(torch_ops, op, None))}
    assert own == set(TRITON)
    sources = [path.read_text() for path in Path(run.ROOT, "backends/cupy").rglob("*.py")]
    assert sum(text.count(" kernel.chosen(") for text in sources) == len(CUPY)


@pytest.mark.parametrize("name", ["triton:sample", "triton:verify_residual", "triton:to_probs", "triton:lost_mass"])
def test_small_shapes_agree(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    small_shapes = interpreted()
    small_shapes.main([name, "--device", "cpu"])
    assert "agree with the reference" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["triton:sample", "triton:to_probs"])
def test_a_wrong_kernel_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small_shapes = interpreted()
    op = name.partition(":")[2]
    right = getattr(small_shapes.ops, op)
    monkeypatch.setattr(small_shapes.ops, op, lambda *arrays, **options: right(*arrays, **options) * 2)
    with pytest.raises(AssertionError):
        small_shapes.run(name, "cpu")


def test_a_raw_kernel_that_was_not_used_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    small_shapes = interpreted()
    monkeypatch.setattr(small_shapes, "raw_only", list)
    monkeypatch.setattr(small_shapes, "place", lambda backend, device, array: array)
    monkeypatch.setattr(small_shapes, "fetch", np.asarray)
    monkeypatch.setattr(small_shapes.ops, "verify_greedy", numpy_greedy(small_shapes))
    with pytest.raises(AssertionError, match="array calls were used, not the raw kernel"):
        small_shapes.run("cupy:verify_greedy")


def numpy_greedy(small_shapes: Any) -> Any:
    right = small_shapes.reference.verify_greedy
    return lambda *arrays, backend, **options: right(*arrays, **options)


def interpreted() -> Any:
    pytest.importorskip("triton", reason="triton is not installed")
    from gpu import small_shapes

    from zigzag.backends import triton as triton_ops

    if triton_ops.unavailable():
        pytest.skip(triton_ops.unavailable())
    return small_shapes
