"""The suite of experts: right on a CPU, and it counts the bytes of what the tokens choose."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from zigzag.bench import experts, timing  # noqa: E402
from zigzag.bench.cases import run_case  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(timing, "RUNS", 2)
    monkeypatch.setattr(timing, "COPY_BYTES", 1 << 20)
    monkeypatch.setattr(timing, "MATRIX", 256)
    for rate in (timing.copy_rate, timing.matrix_rate):
        rate.cache_clear()
    yield
    for rate in (timing.copy_rate, timing.matrix_rate):
        rate.cache_clear()


def test_every_method_is_right_on_a_cpu(quick, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts, "SMALL", {"tiny": (6, 2, 24, 12)})
    for case in experts.experts(CPU):
        rows = {row.method: row for row in run_case(case, CPU)}
        assert {"triton", "torch", "transformers grouped_mm", "transformers batched_mm"} <= set(rows)
        rows.pop("cupy-on-numpy", None)  # takes other arrays
        assert "GPU" in rows.pop("triton").note and rows.pop("cupy").note
        assert not [row for row in rows.values() if row.note or row.eager is None], rows


def test_bytes_are_those_of_the_chosen_experts() -> None:
    """One token of GLM-4.5-Air reads 8 experts of 3 x 1,408 x 4,096 numbers; many tokens read all 128."""
    meta = torch.device("meta")
    one = experts._case(meta, "Air", experts.GEOMETRIES["GLM-4.5-Air"], 1)
    assert one.bytes == 4 * (8 * 3 * 1_408 * 4_096 + 2 * 4_096)
    many = experts._case(meta, "Air", experts.GEOMETRIES["GLM-4.5-Air"], 1_000)
    assert many.bytes == pytest.approx(4 * (128 * 3 * 1_408 * 4_096 + 2_000 * 4_096))


def test_drawn_experts_are_as_many_as_counted() -> None:
    geometry = (64, 8, 4, 2)
    drawn = [len(experts.inputs(CPU, geometry, 5, seed)[1].unique()) for seed in range(200)]
    expected = 64 * (1 - (1 - 8 / 64) ** 5)
    assert abs(sum(drawn) / len(drawn) - expected) < 0.6  # standard deviation of the mean: 0.15
