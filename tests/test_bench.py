"""The benchmark checks what it times: wrong, unwritten and failing methods show, and no row is lost."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from typer.testing import CliRunner  # noqa: E402

from zigzag import ops  # noqa: E402
from zigzag.bench import attention, counters, report, timing  # noqa: E402
from zigzag.bench.cases import Adapted, Case, Later, Row, poison, relative, run_case, share_unequal  # noqa: E402
from zigzag.bench.verification import BAND, near_thresholds, verify, verify_case  # noqa: E402
from zigzag.cli import bench as cli_bench  # noqa: E402
from zigzag.cli.app import app  # noqa: E402
from zigzag.reference import Verdict  # noqa: E402
from zigzag.reference.errors import ArgumentError, ZigzagError  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other take longer than what they compute here."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in set(cli_bench.KERNELS.values()):
        cli_bench.import_module(module)  # one that is first imported here would keep these numbers for the tests after
    monkeypatch.setattr(timing, "RUNS", 1)
    monkeypatch.setattr(timing, "WARM", 0)
    monkeypatch.setattr(timing, "COPY_BYTES", 1 << 20)
    monkeypatch.setattr(timing, "MATRIX", 256)
    monkeypatch.setattr(attention, "GEOMETRIES", {"Llama-3-8B": (4, 2, 16)})
    monkeypatch.setattr(attention, "VARIANTS", {"head size 8": (4, 2, 8)})
    for name, value in {"FULL_SHAPES": ((1, 64), (1, 128)), "SMALL": 64, "SMALL_PROMPT": 512, "RECENT": 128}.items():
        monkeypatch.setattr(attention, name, value)
    monkeypatch.setattr("zigzag.bench.verification.VOCABULARY", 2_000)
    timing.copy_rate.cache_clear()
    timing.matrix_rate.cache_clear()


def fails(x: Any) -> Any:
    raise RuntimeError("no such shape\nsecond line")


def toy(**methods: Any) -> Case:
    return Case(
        suite="toy",
        labels={"size": 1_000},
        bytes=8_000,
        operations=0,
        inputs=lambda seed: (torch.randn(1_000, generator=torch.Generator().manual_seed(seed)),),
        methods=methods,
        truth=lambda x: 2 * x.double(),
        error=relative,
        tolerance=1e-6,
        contrasts={"sum": torch.sum},
    )


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


def test_a_case_that_is_too_large_gives_rows() -> None:
    case = replace(toy(right=lambda x: 2 * x, absent="not installed"), inputs=fails)
    notes = [row.note for row in run_case(case, CPU)]
    missing = "no inputs: RuntimeError: no such shape"
    assert notes == [missing, "not installed", missing]


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


def test_every_input_set_is_checked() -> None:
    """A method that remembers its first answer is right once."""
    kept: list[Any] = []

    def stale(x: Any) -> Any:
        kept.append(2 * x)
        return kept[0].clone()

    (row, _) = run_case(toy(stale=stale), CPU)
    assert row.note.startswith("wrong")


def test_adapted_inputs_and_results() -> None:
    """Only `call` sees the other form; `within` surrounds it all; `remark` is no fault."""
    entered: list[str] = []

    class Within:
        def __enter__(self) -> None:
            entered.append("in")

        def __exit__(self, *failure: Any) -> None:
            entered.append("out")

    listed = Adapted(
        lambda numbers: [2 * n for n in numbers], lambda x: (x.tolist(),), torch.tensor, within=Within, remark="slow"
    )
    strict = Adapted(lambda x: 2 * x, error=lambda result, truth: 1.0)
    rows = {row.method: row for row in run_case(toy(listed=listed, strict=strict), CPU)}
    assert (rows["listed"].note, rows["listed"].remark) == ("", "slow") and rows["listed"].error < 1e-6
    assert rows["strict"].note == "wrong: error 1 > 1e-06"
    assert entered == ["in", "out"]


def test_poison_and_errors() -> None:
    tensors = (torch.ones(3), torch.ones(3, dtype=torch.int64), None)
    poison(tensors)
    assert tensors[0].isnan().all() and (tensors[1] == -(2**63)).all()
    assert relative(torch.tensor([1.0, float("nan")]), torch.ones(2)) == float("inf")
    assert relative(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.0])) == pytest.approx(1 / 18**0.5)


@pytest.mark.parametrize(
    ("tokens", "accepted", "share", "near"),
    [
        ([2, 30, -1], 1, 0, 0),
        ([2, 33, -1], 1, 0.5, 0),  # the drawn token is near
        ([2, 36, -1], 1, 0.5, 0.5),
        ([3, 30, -1], 1, 0.5, 0.5),  # an accepted one is near: no excuse
        ([2, 30, 7], 1, 0.5, 0.5),
        ([2, 30, -1], 2, 0.5, 0.5),
    ],
)
def test_share_of_unequal_verdicts(tokens: list[int], accepted: int, share: float, near: float) -> None:
    same = [1, 2, 3]
    result = Verdict(torch.tensor([same, tokens]), torch.tensor([2, accepted]))
    truth = Verdict(torch.tensor([same, [2, 30, -1]]), torch.tensor([2, 1]))
    assert share_unequal(result, truth) == share and share_unequal(result, truth, reach=5) == near


FLAT, HALVES = [0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0.0, 0.0]


def near(uniforms: list[list[float]], q: list[float] | None = None) -> tuple[int, int]:
    """Of rows with two drafts of token 0, target rows all alike."""
    rows, double = len(uniforms), torch.float64
    ids, coins = torch.zeros(rows, 2, dtype=torch.int64), torch.tensor(uniforms, dtype=double)
    logits = torch.tensor(FLAT, dtype=double).log().expand(rows, 3, 4)
    draft = None if q is None else torch.tensor(q, dtype=double).expand(rows, 2, 4)
    return near_thresholds((ids, draft, logits, coins), ops.verify_residual(ids, draft, logits, coins, temperature=1.0))


@pytest.mark.parametrize(
    ("q", "uniforms", "found"),
    [
        (None, [0.3, 0.9, 0.5], (0, 2)),  # rejected at once: weights 0, 1, 1, 1, and the second coin is not looked at
        (None, [0.25, 0.9, 0.5], (1, 2)),  # the coin is p(x)
        (None, [0.25 + 0.9 * BAND, 0.9, 0.5], (1, 2)),
        (None, [0.25 + 1.1 * BAND, 0.9, 0.5], (0, 2)),
        (None, [0.3, 0.25, 0.5], (0, 2)),  # nobody looks at the second
        (None, [0.1, 0.25, 0.5], (1, 3)),
        (None, [0.3, 0.9, 1 / 3], (1, 2)),  # the draw
        (None, [0.3, 0.9, 1 / 3 + 0.9 * BAND], (1, 2)),
        (None, [0.3, 0.9, 1 / 3 + 1.1 * BAND], (0, 2)),
        (None, [0.1, 0.1, 0.6], (0, 3)),  # all accepted: weights 1, 1, 1, 1
        (None, [0.1, 0.1, 0.75], (1, 3)),
        (HALVES, [0.3, 0.25, 0.6], (0, 3)),  # accepted below 0.5; weights 1, 1, 1, 1
        (HALVES, [0.5, 0.9, 0.75], (1, 2)),  # rejected: 0, 0, 1, 1
        (HALVES, [0.6, 0.9, 0.5], (1, 2)),
        (FLAT, [0.1, 0.1, 0.1], (0, 3)),  # nothing can be rejected
    ],
)
def test_draws_near_a_threshold(q: list[float] | None, uniforms: list[float], found: tuple[int, int]) -> None:
    assert near([uniforms], q) == found
    clear = [0.3, 0.9, 0.6] if q is None else [0.1, 0.1, 0.6]
    assert near([clear, uniforms, clear], q) == (found[0], found[1] + 2 * near([clear], q)[1])


def test_verdicts_that_differ_are_told() -> None:
    """Every verdict of a method that takes the next token, though the case's error lets it pass."""

    def beside(ids: Any, q: Any, logits: Any, uniforms: Any) -> Verdict:
        tokens, accepted, _ = ops.verify_residual(ids, q, logits, uniforms, temperature=1.0)
        return Verdict(tokens.scatter_add(1, accepted[:, None], torch.ones_like(accepted)[:, None]), accepted)

    case = verify_case(CPU, 1, 0.7, "one-hot")
    other = Adapted(beside, error=lambda result, truth: 0.0)  # draws numbers of its own
    case = replace(case, methods={"torch": case.methods["torch"], "beside": beside, "other": other}, contrasts={})
    case = replace(case, near=lambda inputs, truth: (1, 4))
    rows = {row.method: row for row in run_case(case, CPU)}
    assert [row.note for row in rows.values()] == ["", "", ""]
    assert (rows["torch"].unequal, rows["beside"].unequal, rows["other"].unequal) == (0, 1, None)
    assert (rows["torch"].near, rows["beside"].near, rows["other"].near) == (0.25, 0.25, None)
    *said, nothing = [line[-1] for line in report.cells(list(rows.values()))]
    assert said == [f"{n}.00% of verdicts differ, 25.00% of draws are near a threshold" for n in (0, 100)]
    assert nothing == ""
    assert report.as_json({}, [rows["beside"]])["rows"][0]["near"] == 0.25
    (greedy, *_) = run_case(verify_case(CPU, 1, 0.7, "greedy"), CPU)
    assert greedy.near is None and report.cells([greedy])[0][-1] in ("0.00% of verdicts differ", greedy.note)


def test_slow_calls_are_measured_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rounds that warm up never count."""
    monkeypatch.setattr(timing, "RUNS", 20)
    monkeypatch.setattr(timing, "WARM", 3)
    for seconds, rounds in ((60.0, 23), (0.0, 6)):
        monkeypatch.setattr(timing, "SECONDS", seconds)
        times = [100.0, 100.0, 100.0, *range(1, 40)]
        left = iter(times)
        assert timing._median(partial(next, left)) == (rounds - 3 + 1) / 2
        assert next(left) == times[rounds]


def test_the_rate_of_a_copy_is_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter((5.0, 4.0))
    monkeypatch.setattr(timing, "time_call", lambda *given, **named: timing.Timing(None, next(times), 0))
    assert timing.copy_rate(CPU) == 2e6 * (1 << 16) / 4.0
    assert list(times) == []


def test_without_a_graph_the_eager_time_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(graph: Any) -> Any:
        raise RuntimeError("allocates while captured")

    for name, fake in {"CUDAGraph": object, "graph": refuse, "synchronize": lambda: None}.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(timing, "_events", lambda call: 6.0)
    found = timing.time_call(torch.neg, [(torch.ones(1),)] * 2, SimpleNamespace(type="cuda"), first=1.0)
    assert found == timing.Timing(None, 3.0, 1.0, "RuntimeError: allocates while captured")


def test_rows_beside_others() -> None:
    rows = [
        Row("s", "ours", {"n": 1}, 2.0, graph=6.0, eager=9.0, first=0.5, error=0.0),
        Row("s", "SDPA flash", {"n": 1}, 2.0, graph=4.0, eager=5.0, error=1e-6),
        Row("s", "SDPA, all keys", {"n": 1}, 2.0, graph=2.0, eager=10.0),  # something else: not checked, no peer
        Row("s", "FlashInfer", {"n": 1}, 2.0, graph=3.0, eager=5.0, note="wrong: error |1| > 0.1"),
        Row("s", "FlashInfer FA2", {"n": 1}, 2.0, eager=18.0, error=0.0, remark="no CUDA graph: it waits"),
        Row("s", "FlexAttention", {"n": 1}, 2.0, note="not installed"),
        Row("s", "ours", {"n": 2}, 2.0, eager=9.0, error=0.0),
    ]
    lines = report.cells(rows)
    column = {name: [line[place] for line in lines] for place, name in enumerate(report.COLUMNS)}
    assert column["over floor"] == ["3.00", "2.00", "1.00", "1.50", "9.00", "", "4.50"]
    assert column["over others, graph"] == ["1.50 SDPA flash, (3.00 SDPA, all keys)", *6 * [""]]
    assert column["over others, eager"] == ["1.80 SDPA flash, 0.50 FlashInfer FA2, (0.90 SDPA, all keys)", *6 * [""]]
    assert column["first, s"][:2] == ["0.50", ""] and column["note"][4] == "no CUDA graph: it waits"
    facts = report.conditions(CPU, "zigzag bench s")
    page = report.page(facts, rows, {"s": "s.png"})
    assert page.count("\n| n ") == len(rows)
    assert all(
        word in page for word in ("zigzag bench s", "{image} s.png", "{image} s-dark.png", "error \\|1\\| > 0.1")
    )
    assert {"command", "device", "versions", "commit"} <= set(facts)


def test_pictures(tmp_path: Path) -> None:
    plots = pytest.importorskip("zigzag.bench.plots", reason="matplotlib is not installed")
    rows = [
        Row("decode", method, {"geometry": "g", "batch": batch, "keys": keys}, keys / 1e3, eager=keys / 100)
        for method in ("a", "b")
        for batch in (1, 8)
        for keys in (64, 1_024)[: 1 + (batch == 1)]
    ]
    rows.append(Row("decode", "wrong", {"geometry": "g", "batch": 1, "keys": 64}, 1.0, eager=1.0, note="wrong"))
    made = plots.panels(rows)
    assert list(made) == ["decode: g, batch 1"]  # batch 8 has one context only
    assert {row.method for row in made["decode: g, batch 1"]} == {"a", "b"}
    assert plots.latency(rows, tmp_path / "p.png") and not plots.latency(rows[4:], tmp_path / "none.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p-dark.png", "p.png"]


def test_suites_are_right_on_a_cpu() -> None:
    """Every backend that can run here gives the right numbers on each suite's smallest case."""
    for suite in (attention.decode, attention.prefill, attention.scores, verify):
        for case in suite(CPU):
            rows = list(run_case(case, CPU))
            measured = [row for row in rows if row.eager is not None]
            assert "torch" in {row.method for row in measured}, [row.note for row in rows]
            assert not [row for row in measured if row.note], case.labels


def test_command(tmp_path: Path) -> None:
    out = tmp_path / "decode.json"
    result = CliRunner().invoke(app, ["bench", "decode", "--out", str(out), "--only", "queries 1,"])
    assert result.exit_code == 0, result.output
    assert "no GPU" in result.output
    content = json.loads(out.read_text())
    assert content["conditions"]["command"] == "zigzag bench decode --device cpu --only 'queries 1,'"
    assert {row["labels"]["queries"] for row in content["rows"]} == {1}
    page = out.with_suffix(".md").read_text()
    assert page.count("\n| Llama") + page.count("\n| head") == len(content["rows"]) > 5
    pictures = [tmp_path / name for name in ("decode_decode.png", "decode_decode-dark.png")]
    assert all(f"{{image}} {path.name}\n" in page and path.exists() for path in pictures)


def test_a_page_written_anew(tmp_path: Path) -> None:
    """From numbers of another card, commit and version, which stay as they are."""
    pytest.importorskip("zigzag.bench.plots", reason="matplotlib is not installed")
    folder, out = Path(__file__).resolve().parents[1] / "docs" / "benchmarks", tmp_path / "prefill_h100.json"
    out.write_bytes((folder / out.name).read_bytes())
    result = CliRunner().invoke(app, ["bench", "--report-only", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert out.with_suffix(".md").read_text() == (folder / "prefill_h100.md").read_text()
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [
        "prefill_h100_prefill-dark.png",
        "prefill_h100_prefill.png",
    ]
    assert out.read_bytes() == (folder / out.name).read_bytes()
    out.write_bytes((folder / "serving_h200.json").read_bytes())
    with pytest.raises(ArgumentError, match="needs the numbers of kernels or recipes"):
        CliRunner().invoke(app, ["bench", "--report-only", "--out", str(out)], catch_exceptions=False)


def test_no_such_case_is_an_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bench", "decode", "--out", str(tmp_path / "none.json"), "--only", "batch 77"])
    assert result.exit_code == 2 and "no case of decode has 'batch 77'" in result.output
    assert not list(tmp_path.iterdir())


def test_all_is_every_suite_of_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_bench, "KERNELS", {"one": "bench_suites", "two": "bench_suites"})
    own = [Row("two", "measured by itself", {"context": 7}, 1.0, eager=2.0, error=0.0)]
    later = Later("two", {"context": 7}, lambda: own)
    module = SimpleNamespace(one=lambda device: [toy(right=lambda x: 2 * x)], two=lambda device: [later])
    monkeypatch.setitem(sys.modules, "bench_suites", module)
    result = CliRunner().invoke(app, ["bench", "all", "--out", str(tmp_path / "all.json")])
    assert result.exit_code == 0, result.output
    assert [row["method"] for row in json.loads((tmp_path / "all.json").read_text())["rows"]] == [
        "right",
        "sum",
        "measured by itself",
    ]


@pytest.mark.parametrize("suite", cli_bench.KERNELS)
def test_suites_are_where_the_table_says(suite: str) -> None:
    if suite in ("step", "prompts"):
        pytest.importorskip("transformers", reason="transformers is not installed")
    found = next(iter(getattr(cli_bench.import_module(cli_bench.KERNELS[suite]), suite)(CPU)))
    assert found.suite == suite


def test_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there is kept and not measured again; a run of another commit is not joined."""
    measured = []

    def suite(device: torch.device) -> list[Later]:
        def measure(n: int) -> list[Row]:
            measured.append(n)
            if len(measured) == 2:
                raise KeyboardInterrupt
            return [Row("toy", "m", {"n": n}, 1.0, eager=2.0, error=0.0, remark="x", near=0.5)]

        return [Later("toy", {"n": n}, partial(measure, n)) for n in (1, 2, 3)]

    monkeypatch.setattr(cli_bench, "KERNELS", {"decode": "bench_suites"})
    monkeypatch.setitem(sys.modules, "bench_suites", SimpleNamespace(decode=suite))
    monkeypatch.setenv("ZIGZAG_COMMIT", "one")
    call = ["bench", "decode", "--out", str(tmp_path / "r.json"), "--resume"]
    assert CliRunner().invoke(app, call).exit_code != 0 and measured == [1, 2]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.output
    assert measured == [1, 2, 2, 3]
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert [row["labels"]["n"] for row in rows] == [1, 2, 3] and {row["near"] for row in rows} == {0.5}
    monkeypatch.setenv("ZIGZAG_COMMIT", "two")
    other = CliRunner().invoke(app, call)
    assert other.exit_code != 0 and "commit one, now two" in str(other.exception)
    (tmp_path / "r.json").write_text("{}")
    assert "wrote" in str(CliRunner().invoke(app, call).exception)
    (tmp_path / "r.json").write_text("{")
    assert isinstance(CliRunner().invoke(app, call).exception, ArgumentError)


def test_a_typo_names_the_suites() -> None:
    """Through `python -m zigzag`, in a process of its own: where the kit's plugin is installed, pytest's import hook
    reads all of zigzag, and `runpy` cannot go through it."""
    done = subprocess.run(
        [sys.executable, "-m", "zigzag", "bench", "decod"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and "decode" in done.stderr


def test_counters_are_told_by_case() -> None:
    """Kernels stand between marks; a table that is not there is told."""
    metric = "gpu__time_duration.sum"
    lines = [
        "==PROF== x",
        "case a",
        "case b, c",
        f'"Kernel Name","{metric}"',
        '"","us"',
        '"at::spin_kernel(long)","1"',
        '"one(int)","5"',
        '"two","6"',
        '"spin_kernel","1"',
        '"three","7"',
    ]
    found = counters.read("\n".join(lines))
    assert [(case, cells["kernel"], cells["time"]) for case, cells in found] == [
        ("a", "one", "5 us"), ("a", "two", "6 us"), ("b, c", "three", "7 us"),
    ]  # fmt: skip
    assert "b, c: three\n  time 7 us" in counters.text(found)
    with pytest.raises(ZigzagError, match="no table"):
        counters.read("case a")


def test_without_ncu_there_are_no_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ZigzagError, match="Nsight Compute is needed"):
        counters.counted()
