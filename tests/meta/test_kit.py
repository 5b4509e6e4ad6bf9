"""The kit of `zigzag conform`: a broken backend for each property, cells that nobody reached, gaps, examples."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import zigzag
from zigzag import ZigzagError, ops, reference
from zigzag.conformance import compare, effort
from zigzag.conformance import test_assignment as assigning
from zigzag.conformance import test_attention as attending
from zigzag.conformance import test_every_op as every_op
from zigzag.conformance import test_head_scores as scoring
from zigzag.conformance import test_ragged_attention as ragged
from zigzag.conformance import test_routing as routing
from zigzag.conformance import test_sampling as sampling
from zigzag.conformance import test_verification as verifying
from zigzag.conformance.calls import Call, Stored, called, promised
from zigzag.conformance.effort import Effort, examples
from zigzag.conformance.example import written
from zigzag.conformance.gaps import read_gaps
from zigzag.conformance.judging import PROPERTIES, cell_of, judge, judges, judging
from zigzag.conformance.report import Report
from zigzag.conformance.strategies import SHORT, Case, shortened
from zigzag.conformance.typical import typical

Register = Callable[..., str]


@pytest.fixture(autouse=True)
def few_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Effort, "times", 1)
    monkeypatch.setattr(Effort, "most", 12)


@pytest.fixture
def register() -> Iterator[Register]:
    def make(**functions: Callable) -> str:
        zigzag.register_backend("wrong", SimpleNamespace(ARRAY_KINDS=("numpy",), **functions))
        return "wrong"

    yield make
    zigzag.unregister_backend("wrong")


def failed(name: str, test: Callable[[], object]) -> str:
    """The property that the failure of this test is told of, if it is named for `name`."""
    judge.begin()
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        test()
    return judge.failed or name


def short(probs: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    return reference.sample(probs, uniforms).reshape(-1)[:-1]


def half(query: np.ndarray, key: np.ndarray, value: np.ndarray, **options: Any) -> tuple[np.ndarray, ...]:
    output, lse = reference.attention(query, key, value, **options)
    return output, lse.astype(np.float16)


def listed(probs: np.ndarray, uniforms: np.ndarray) -> list[int]:
    return reference.sample(probs, uniforms).tolist()


def scribbled(logits: np.ndarray, **options: Any) -> np.ndarray:
    found = reference.to_probs(logits, **options)
    logits[...] = 0
    return found


def noisy(outputs: np.ndarray, lses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    output, lse = reference.merge(outputs, lses)
    return output + np.random.default_rng().standard_normal() * 1e-12, lse


def leaking(query: np.ndarray, key: np.ndarray, value: np.ndarray, **options: Any) -> tuple[np.ndarray, ...]:
    output, lse = reference.attention(query, key, value, **options)
    return output + 0 * value.sum(), lse


def mixing(query: np.ndarray, key: np.ndarray, value: np.ndarray, gate: np.ndarray, **options: Any) -> np.ndarray:
    found = reference.gated_attention(query, key, value, gate, **options)
    return found + 0 * found.sum(axis=0)


def inexact(*arrays: np.ndarray, **options: Any) -> np.ndarray:
    return reference.lost_mass(*arrays, **options) * 1.001 + 1e-3


def wider(*arrays: np.ndarray, recent: int, **options: Any) -> np.ndarray:
    return reference.output_deviation(*arrays, recent=recent + 1, **options)


def unplaced(query: np.ndarray, key: np.ndarray, **options: Any) -> np.ndarray:
    """Positions are what they are without options."""
    return np.broadcast_to(
        reference.visible(np.arange(query.shape[-1]), np.arange(key.shape[-1])), shape_of(query, key)
    )


def shape_of(query: np.ndarray, key: np.ndarray) -> tuple[int, ...]:
    rows = np.broadcast_shapes(query.shape[:-1], key.shape[:-1])
    return (*rows, query.shape[-1], key.shape[-1])


def shorter(*arrays: np.ndarray, lengths: np.ndarray, **options: Any) -> tuple[np.ndarray, ...]:
    return reference.ragged_attention(*arrays, lengths=np.maximum(lengths - 1, 1), **options)


def last_first(values: np.ndarray, count: int) -> np.ndarray:
    return reference.assign_heads(values[::-1, ::-1], count)[::-1, ::-1]


def at_threshold(ids: Any, draft: Any, target: Any, uniforms: np.ndarray, **options: Any) -> Any:
    return reference.verify_residual(ids, draft, target, np.maximum(uniforms - 2.0**-16, 0), **options)


def first_choice(ids: Any, draft: Any, target: Any, uniforms: np.ndarray, **options: Any) -> Any:
    return reference.verify_block(ids, draft, target, uniforms * 0, **options)


BROKEN: dict[str, tuple[str, Callable, Callable[[str], object]]] = {
    "shapes": ("sample", short, lambda b: every_op.test_shapes("sample", b)),
    "dtypes": ("attention", half, lambda b: every_op.test_dtypes("attention", b)),
    "devices": ("sample", listed, lambda b: every_op.test_dtypes("sample", b)),
    "inputs": ("to_probs", scribbled, lambda b: every_op.test_dtypes("to_probs", b)),
    "determinism": ("merge", noisy, lambda b: every_op.test_determinism("merge", b)),
    "leaks": ("gated_attention", mixing, lambda b: every_op.test_rows_do_not_touch_each_other("gated_attention", b)),
    "tolerance": ("lost_mass", inexact, lambda b: scoring.test_head_scores("lost_mass", "tolerance", b)),
    "windows": ("output_deviation", wider, lambda b: scoring.test_head_scores("output_deviation", "windows", b)),
    "positions": ("visible", unplaced, lambda b: attending.test_visible("positions", b)),
    "lengths": ("ragged_attention", shorter, lambda b: ragged.test_steps(b)),
    "ties": ("assign_heads", last_first, lambda b: assigning.test_assignment("assign_heads", "ties", b)),
    "edges": ("verify_residual", at_threshold, lambda b: verifying.test_exact_numbers("verify_residual", b)),
    "tokens": ("verify_block", first_choice, lambda b: verifying.test_away_from_thresholds("verify_block", b)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_backend_is_told_by_its_property(name: str, register: Register) -> None:
    op, function, test = BROKEN[name]
    test("numpy")
    backend = register(**{op: function})
    assert failed(name, lambda: test(backend)) == name


def test_errors_must_be_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the front door lets everything in."""
    monkeypatch.setattr(ops, "sample", lambda probs, uniforms, backend: np.zeros(uniforms.shape, dtype=np.int64))
    assert failed("errors", lambda: every_op.check_errors("sample", "numpy")) == "errors"


def test_every_property_is_broken_here() -> None:
    assert {*BROKEN, "errors"} == set(PROPERTIES)


def test_nan_that_leaks_is_told_of_leaks(register: Register) -> None:
    backend = register(attention=leaking)
    assert failed("leaks", lambda: attending.test_what_nobody_sees_may_be_nan(backend, [115], False)) == "leaks"


def test_ids_and_weights_are_told_apart(register: Register) -> None:
    backend = register(route_experts=routing.wrong_ties)
    assert failed("tolerance", lambda: routing.check(routing.TOKENS, backend, "float64")) == "tokens"


def test_rows_without_weight_are_told_of_edges(register: Register) -> None:
    backend = register(sample=lambda probs, uniforms: np.maximum(reference.sample(probs, uniforms), 0))
    assert failed("edges", lambda: sampling.test_sample_of_exact_numbers(backend)) == "edges"


# What the running test found.


def test_judging() -> None:
    judge.begin()
    with judging("shapes"):
        pass
    with pytest.raises(AssertionError), judging("tolerance"), judging("dtypes"):
        raise AssertionError
    assert judge.reached == {"shapes"} and judge.failed == "dtypes"
    with pytest.raises(AssertionError), judging("no such property"):
        pass
    with pytest.raises(AssertionError):
        judges("no such property")


def test_a_failure_before_the_last_call_is_forgotten() -> None:
    """Of several examples the smallest is run last."""
    judge.begin()
    with pytest.raises(AssertionError), judging("shapes"):
        raise AssertionError
    called("sample", "numpy", np.array([1.0]), np.array(0.5))
    assert judge.failed is None and judge.ops == {"sample"} and {"inputs", "dtypes", "devices"} <= judge.reached


def item(mark: Any, **params: str) -> SimpleNamespace:
    return SimpleNamespace(get_closest_marker=lambda name: mark, callspec=SimpleNamespace(params=params))


def test_cell_of() -> None:
    assert cell_of(item(None)) is None
    assert cell_of(item(judges("ties", "sample").mark)) == ("sample", "ties")
    assert cell_of(item(judges("ties").mark, op="merge")) == ("merge", "ties")
    assert cell_of(item(judges("ties").mark, case="verify_block, distinct")) == ("verify_block", "ties")
    assert cell_of(item(judges("?").mark, op="merge", judged="edges")) == ("merge", "edges")


@pytest.mark.parametrize(
    ("promise", "float_dtype", "kind", "allowed"),
    [
        ("given", "float16", "torch", {"float16"}),
        ("given", "float16", "numpy", {"float16", "float64"}),
        ("wide", "float16", "torch", {"float32", "float64"}),
        ("wide", "float64", "numpy", {"float64"}),
        ("int64", "", "torch", {"int64"}),
    ],
)
def test_promised_dtypes(promise: str, float_dtype: str, kind: str, allowed: set[str]) -> None:
    assert set(promised(promise, float_dtype, kind)) == allowed


def test_effort(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Effort, "most", None)
    monkeypatch.setattr(Effort, "times", 4)
    assert examples("numpy", 10) == 40
    monkeypatch.setattr(Effort, "most", 7)
    assert examples("numpy", 10) == 7
    monkeypatch.setattr(effort, "interpreted", lambda backend: True)
    assert [examples("triton", 10, least) for least in (2, 5, 9)] == [2, 5, 7]


def test_typical_calls_are_the_same_each_time() -> None:
    one, other = typical("attention"), typical("attention")
    assert all(np.array_equal(one.arrays[name], other.arrays[name]) for name in one.arrays)


# The report.


def ended(op: str, reached: list[str], failed: str = "", when: str = "call") -> SimpleNamespace:
    found = [("op", op), ("reached", reached)]
    found += [("failed", failed), ("message", "E: no"), ("example", ["a", "b"])] if failed else []
    return SimpleNamespace(when=when, failed=bool(failed), user_properties=found, nodeid="t", longreprtext="text")


def results(report: Report, gaps: dict[tuple[str, str], str] | None = None) -> dict[tuple[str, str], str]:
    cells = report.cells(("merge", "sample"), ("merge", "sample", "visible"), gaps or {})
    return {(cell.op, cell.property): cell.result for cell in cells if cell.op != "visible"}


def test_a_cell_that_nobody_reached_is_no_pass() -> None:
    report = Report()
    assert results(report) == {}
    report.pytest_runtest_logreport(ended("merge", ["inputs"]))
    assert results(report) == {("merge", "inputs"): "pass"}
    report.pytest_runtest_logreport(ended("merge", ["inputs", "dtypes"], failed="inputs"))
    assert results(report) == {("merge", "inputs"): "fail", ("merge", "dtypes"): "pass"}
    (cell, *_) = [cell for cell in report.cells(("merge",), ("merge",), {}) if cell.result == "fail"]
    assert (cell.message, cell.test, cell.example) == ("E: no", "t", ["a", "b"])
    missing = report.cells((), ("merge", "visible"), {})
    assert {cell.result for cell in missing if cell.op == "visible"} == {"not supported"}


def test_gaps_in_the_report() -> None:
    """One that fails, one that passes, one that nobody reached, one of an op that was not wanted."""
    report = Report()
    report.pytest_runtest_logreport(ended("merge", ["inputs"], failed="edges"))
    gaps = {
        ("merge", "edges"): "why",
        ("merge", "inputs"): "why",
        ("sample", "ties"): "why",
        ("attention", "ties"): "x",
    }
    expected = {("merge", "edges"): "known gap", ("merge", "inputs"): "stale gap", ("sample", "ties"): "stale gap"}
    assert results(report, gaps) == expected


def test_what_breaks_outside_a_check_is_kept() -> None:
    report = Report()
    report.pytest_runtest_logreport(ended("merge", [], failed="edges", when="setup"))
    report.pytest_collectreport(SimpleNamespace(failed=True, nodeid="t", longreprtext="text"))
    assert results(report) == {} and report.broken == ["t: text"] * 2


def test_a_report_counts() -> None:
    told: list[tuple[int, int]] = []
    report = Report(lambda done, total: told.append((done, total)))
    report.pytest_collection_finish(SimpleNamespace(items=[1, 2]))
    report.pytest_runtest_logfinish()
    assert told == [(1, 2)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[merg]", "'merg' is no op"),
        ("merge = 3", "merge must be a table"),
        ('[merge]\nedge = "x"', "'edge' is no property"),
        ('[merge]\nedges = " "', "edges needs a reason"),
        ("[merge", "it holds lines such as"),
    ],
)
def test_bad_gaps(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "gaps.toml").write_text(text)
    with pytest.raises(ZigzagError, match=words):
        read_gaps(tmp_path / "gaps.toml")


def test_gaps_are_read(tmp_path: Path) -> None:
    (tmp_path / "gaps.toml").write_text('[merge]\nedges = "later"')
    assert read_gaps(tmp_path / "gaps.toml") == {("merge", "edges"): "later"}


# Examples.


def repeated(lines: list[str]) -> bool:
    space: dict[str, Any] = {}
    exec("\n".join([lines[0], f"found = {lines[1]}"]), space)
    return bool(space["found"])


@pytest.mark.parametrize("size", [4, 400], ids=["written out", "in a file"])
def test_an_example_repeats_the_call(size: int, tmp_path: Path, register: Register, capsys: Any) -> None:
    backend = register(sample=lambda probs, uniforms: reference.sample(probs[..., ::-1], uniforms))
    probs = np.linspace(0, 1, size)
    probs[1] = np.nan
    called("sample", backend, probs, np.array(0.75))
    lines = written(judge.call, backend, load=None, device="cpu", folder=tmp_path / "kept")
    assert len(lines) == 2 and (tmp_path / "kept").exists() is (size == 400)
    assert not repeated(lines)
    assert "1 of 1 differ" in capsys.readouterr().out
    assert repeated([lines[0], lines[1].replace("'wrong'", "'numpy'")])


def test_an_example_of_no_numbers(tmp_path: Path) -> None:
    call = Call("sample", {"probs": Stored("float32", np.zeros((0, 3))), "uniforms": Stored("float32", np.zeros(0))})
    assert repeated(written(call, "numpy", load=None, device="cpu", folder=tmp_path))


def test_a_file_that_is_no_example(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_text("no")
    with pytest.raises(ZigzagError, match="is no example that zigzag conform wrote"):
        compare("numpy", "sample", file=str(tmp_path / "x.npz"))


def test_results_of_another_library_are_noticed(register: Register) -> None:
    """A caller who gave NumPy's arrays must not get tensors."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    name = register(sample=lambda probs, uniforms: torch.from_numpy(reference.sample(probs, uniforms)))
    assert failed("dtypes", lambda: every_op.test_dtypes("sample", name)) == "devices"


@pytest.mark.parametrize(("name", "left"), [("numpy", 60), ("triton", SHORT)])
def test_prompts_are_cut_only_where_kernels_are_interpreted(name: str, left: int) -> None:
    states = [np.arange(60.0).reshape(1, 1, 60, 1) for _ in range(4)]
    case = Case(*states, np.ones(1), {}, {"query_positions": np.arange(60)})
    shortened(case, name)
    assert case.query[0, 0, :, 0].tolist() == list(range(60 - left, 60)) == case.options["query_positions"].tolist()
    assert case.grad_output.shape == case.query.shape and case.key.shape[2] == 60
