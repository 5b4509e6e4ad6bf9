"""The bench of serving measures what it says: all rows at once, steps in which all of them decode, what fits."""

import json
from pathlib import Path
from typing import Any

import engines
import pytest

from zigzag.bench import served
from zigzag.bench.served import Asked, Run, Served
from zigzag.bench.serving import ON_CPU, STREAMING, job
from zigzag.reference.errors import ArgumentError

assert engines.HERE is not None  # its settings hold for this process
POOL = 160


def test_times_of_a_run() -> None:
    """Two requests; the second comes later, and the first ends before it."""
    given = {"a": [(1.0, 1), (2.0, 1), (4.0, 1)], "b": [(2.0, 1), (4.0, 1), (4.5, 1), (5.5, 1)]}
    run = Run({"a": 0.5, "b": 1.5}, given, [(1.0, 1), (2.0, 2), (4.0, 2), (4.5, 1), (5.5, 1)])
    assert run.waits() == [0.5, 0.5]
    assert run.paces() == [1.5, pytest.approx(3.5 / 3)]
    assert run.decoding(2) == [2.0] and run.decoding(1) == [1.0]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("served")
    return Served(str(folder), told(folder)["options"] | {"num_gpu_blocks_override": POOL})


def told(folder: Path) -> dict[str, Any]:
    """A job on the folder, with everything in it that it needs."""
    from zigzag.bench.serving import COMMON

    config = COMMON | dict(ON_CPU.shape) | {"torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    ON_CPU.plan.save(folder / "plan.json")
    found = job(ON_CPU, f"{STREAMING}: batches", folder, 1)
    found["options"] |= engines.HERE
    return found


def test_a_batch(small: Served) -> None:
    found = small.batch(3, 300, 6)
    assert found["rows"] == 3 and found["steps"] >= 6 and 0 < found["step"] <= found["step, 90%"]
    assert 0 < found["first token, median"] <= found["first token, last"] < found["seconds"]
    prompts = small.batch(4, 256, 0)
    assert prompts["steps"] == 0 and prompts["step"] is None and prompts["seconds"] == prompts["first token, last"]


def test_as_many_as_fit_decode_at_once(small: Served) -> None:
    """And not many more than half as many again."""
    rows = small.rows_that_fit(512)
    assert 3 < rows < 16
    assert small.batch(0, 500, 4)["steps"] >= 4
    with pytest.raises(ArgumentError, match="longer than max_model_len"):
        small.batch(3, 1020, 6)
    steps = small.run([Asked(0, 500, 40)] * (rows * 3)).steps
    assert max(count for _, count in steps) <= 1.5 * rows


def test_a_trace(small: Served) -> None:
    found = small.trace([Asked(0.0, 100, 4), Asked(0.3, 40, 4), Asked(0.3, 60, 4)])
    assert found["requests"] == 3 and found["seconds"] > 0.3
    assert 0 < found["first token, 50%"] <= found["first token, 99%"] < 0.3
    assert 0 < found["token, 50%"] <= found["token, 99%"]


def test_measure(tmp_path: Path) -> None:
    """What the process of its own does with what it is told."""
    wanted = told(tmp_path) | {"warm": (1, 64, 1), "batches": [(2, 64, 2)], "trace": [(0.0, 32, 2)]}
    found = served.measure(wanted)
    assert [one["rows"] for one in found["batches"]] == [2] and found["trace"]["requests"] == 1
