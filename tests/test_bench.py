"""The benchmark checks what it times: wrong, unwritten and failing methods show, and no row is lost."""

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from typer.testing import CliRunner  # noqa: E402

from zigzag import cli_bench  # noqa: E402
from zigzag.bench import attention, report, timing  # noqa: E402
from zigzag.bench.cases import Case, Row, poison, relative, run_case, share_unequal  # noqa: E402
from zigzag.bench.verification import verify  # noqa: E402
from zigzag.cli import app  # noqa: E402
from zigzag.reference import Verdict  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "RUNS", 2)
    monkeypatch.setattr(timing, "COPY_BYTES", 1 << 20)
    monkeypatch.setattr(timing, "MATRIX", 256)
    timing.copy_rate.cache_clear()
    timing.matrix_rate.cache_clear()


def fails(x: Any) -> Any:
    raise RuntimeError("no such shape\nsecond line")


def toy(**methods: Any) -> Case:
    return Case(
        suite="toy", labels={"size": 1_000}, bytes=8_000, operations=0,
        inputs=lambda seed: (torch.randn(1_000, generator=torch.Generator().manual_seed(seed)),),
        methods=methods, truth=lambda x: 2 * x.double(), error=relative, tolerance=1e-6,
        contrasts={"sum": torch.sum},
    )  # fmt: skip


def test_every_method_gives_a_row() -> None:
    case = toy(right=lambda x: x + x, wrong=lambda x: 2.1 * x, broken=fails, absent="not installed")
    rows = {row.method: row for row in run_case(case, CPU)}
    assert list(rows) == ["right", "wrong", "broken", "absent", "sum"]
    assert rows["right"].note == "" and rows["right"].error < 1e-6 and rows["right"].eager > 0
    assert rows["wrong"].note.startswith("wrong: error 0.05")
    assert rows["broken"].note == "RuntimeError: no such shape" and rows["broken"].eager is None
    assert rows["absent"].note == "not installed"
    assert rows["sum"].error is None and rows["sum"].note == "" and rows["sum"].eager > 0
    assert rows["right"].floor == pytest.approx(1e6 * 8_000 / timing.copy_rate(CPU))
    assert rows["right"].graph is None  # there are no graphs on a CPU


def test_unwritten_output_is_wrong() -> None:
    """A method that reuses memory and writes half of it: what the poison left shows."""
    kept: list[Any] = []

    def half(x: Any) -> Any:
        if not kept:
            kept.append(2 * x)
        kept[0][:500] = 2 * x[:500]
        return kept[0]

    (row, _) = run_case(toy(half=half), CPU)
    assert row.note.startswith("wrong: error inf") and row.error is None  # JSON has no infinity


def test_poison_and_errors() -> None:
    tensors = (torch.ones(3), torch.ones(3, dtype=torch.int64))
    poison(tensors)
    assert tensors[0].isnan().all() and (tensors[1] == 1).all()
    assert relative(torch.tensor([1.0, float("nan")]), torch.ones(2)) == float("inf")
    assert relative(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.0])) == pytest.approx(1 / 18**0.5)
    one, other = (Verdict(torch.tensor([[1, -1], [2, token]]), None) for token in (3, 4))
    assert share_unequal(one, other) == 0.5 and share_unequal(one, one) == 0


def test_the_best_peer_is_the_fastest_right_one() -> None:
    rows = [
        Row("s", "ours", {"n": 1}, 2.0, graph=6.0, eager=9.0),
        Row("s", "SDPA flash", {"n": 1}, 2.0, graph=4.0, eager=5.0, error=1e-6),
        Row("s", "SDPA, all keys", {"n": 1}, 2.0, graph=2.0, eager=5.0),  # something else: not checked, no peer
        Row("s", "FlashInfer", {"n": 1}, 2.0, graph=3.0, eager=5.0, note="wrong: error 1 > 0.1"),
        Row("s", "FlexAttention", {"n": 1}, 2.0, note="not installed"),
        Row("s", "ours", {"n": 2}, 2.0, eager=9.0),
    ]
    lines = report.cells(rows)
    over_floor, over_peer = report.COLUMNS.index("over floor"), report.COLUMNS.index("over best peer")
    assert [line[over_floor] for line in lines] == ["3.00", "2.00", "1.00", "1.50", "", "4.50"]
    assert [line[over_peer] for line in lines] == ["1.50", "", "", "", "", ""]  # no peer, no ratio
    facts = report.conditions(CPU, "zigzag bench s")
    page = report.page(facts, rows)
    assert page.count("\n| n ") == len(rows) and "zigzag bench s" in page


def test_suites_are_right_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every backend that can run here gives the right numbers on each suite's smallest case."""
    monkeypatch.setattr(attention, "GEOMETRIES", {"Llama-3-8B": (4, 2, 16)})
    monkeypatch.setattr("zigzag.bench.verification.VOCABULARY", 2_000)
    for suite in (attention.decode, attention.prefill, attention.scores, verify):
        for case in suite(CPU):
            rows = list(run_case(case, CPU))
            measured = [row for row in rows if row.eager is not None]
            assert "torch" in {row.method for row in measured}, [row.note for row in rows]
            assert not [row for row in measured if row.note], case.labels


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "GEOMETRIES", {"Llama-3-8B": (4, 2, 16)})
    monkeypatch.setattr(attention, "FULL_SHAPES", ((1, 64),))
    out = tmp_path / "decode.json"
    result = CliRunner().invoke(app, ["bench", "decode", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "no GPU" in result.output
    content = json.loads(out.read_text())
    assert content["conditions"]["command"] == "zigzag bench decode --device cpu"
    page = out.with_suffix(".md").read_text()
    assert page.count("\n| Llama") == len(content["rows"]) > 5


def test_a_typo_names_the_suites() -> None:
    result = CliRunner().invoke(app, ["bench", "decod"])
    assert result.exit_code == 2 and "decode" in result.output
    assert set(cli_bench.KERNELS) == {"decode", "prefill", "scores", "verify"}
