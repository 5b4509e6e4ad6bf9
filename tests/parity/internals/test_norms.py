"""`rms_norm` and `add_rms_norm`, a residual and the norm after it in one launch, against the formula in float64."""

from importlib import import_module

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("triton", reason="triton is not installed")
glm = pytest.importorskip("transformers.models.glm4_moe.modeling_glm4_moe", reason="transformers is not installed")

from zigzag import ArgumentError, KindError  # noqa: E402
from zigzag.backends import triton as triton_ops  # noqa: E402
from zigzag.conformance import arrays  # noqa: E402
from zigzag.conformance.tolerance import assert_no_worse  # noqa: E402

norms = import_module("zigzag.backends.triton.norms")

pytestmark = pytest.mark.skipif(bool(triton_ops.unavailable()), reason=triton_ops.unavailable() or "it is available")

EPS = 1e-2
SHAPES = ((1, 1, 4096), (2, 3, 48), (5, 1), (3, 1000), (1, norms.WIDEST))


def inputs(shape: tuple[int, ...], dtype: str) -> tuple:
    """(x, residual, weight): the first of size 1, the second of size 2, so that they are not taken for another."""
    rng, kind = np.random.default_rng(shape), getattr(torch, dtype)
    drawn = rng.standard_normal(shape), 2 * rng.standard_normal(shape), rng.standard_normal(shape[-1:])
    return tuple(torch.from_numpy(array).to(arrays.DEVICE, kind) for array in drawn)


def formula(summed, weight) -> np.ndarray:
    x = summed.double()
    return (x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight.double()).cpu().numpy()


@torch.no_grad()
def of_transformers(summed, weight):
    norm = glm.Glm4MoeRMSNorm(len(weight), EPS)
    norm.weight = torch.nn.Parameter(weight)
    return norm(summed)


def check(shape: tuple[int, ...], dtype: str, spoiled=lambda total, normed: (total, normed)) -> None:
    """The sum bit for bit, its norm no worse than transformers' in the same dtype."""
    x, residual, weight = inputs(shape, dtype)
    before = x.clone(), residual.clone(), weight.clone()
    total, normed = spoiled(*norms.add_rms_norm(x, residual, weight, EPS))
    assert torch.equal(total, x + residual)
    naive = of_transformers(x + residual, weight)
    exact = formula(x + residual, weight)
    assert_no_worse(normed.double().cpu(), exact, naive.double().cpu(), dtype=dtype, factor=1.0)
    assert total.dtype == normed.dtype == residual.dtype
    assert all(torch.equal(a, b) for a, b in zip(before, (x, residual, weight), strict=True)), "inputs were changed"


def check_alone(shape: tuple[int, ...], dtype: str, spoiled=lambda normed: normed) -> None:
    """No worse than transformers' norm, and bit for bit that of a residual's sum."""
    x, _, weight = inputs(shape, dtype)
    before = x.clone(), weight.clone()
    normed = spoiled(norms.rms_norm(x, weight, EPS))
    assert_no_worse(
        normed.double().cpu(), formula(x, weight), of_transformers(x, weight).double().cpu(), dtype=dtype, factor=1.0
    )
    assert normed.dtype == x.dtype and normed.is_contiguous()
    assert torch.equal(normed, norms.add_rms_norm(x, torch.zeros_like(x), weight, EPS)[1])
    assert all(torch.equal(a, b) for a, b in zip(before, (x, weight), strict=True)), "inputs were changed"


@pytest.mark.parametrize("shape", [*SHAPES, (16, 48)], ids=str)
def test_the_formula_alone(shape: tuple[int, ...]) -> None:
    for dtype in arrays.dtypes_of("triton"):
        check_alone(shape, dtype)


@pytest.mark.parametrize("spoiled", [lambda a: a * (1 + 1e-4), lambda a: a.roll(1, 0), lambda a: a.roll(1, 1)])
def test_another_norm_is_noticed(spoiled) -> None:
    with pytest.raises(AssertionError, match="error"):
        check_alone((3, 48), "float32", spoiled)


def test_alone_inputs_may_have_strides() -> None:
    x, residual, weight = inputs((4, 6, 32), "float32")
    expected = norms.rms_norm(x, weight, EPS)
    for strided in (x.transpose(0, 1).contiguous().transpose(0, 1), torch.stack([x, residual], dim=-1)[..., 0]):
        assert not strided.is_contiguous()
        assert torch.equal(norms.rms_norm(strided, torch.stack([weight, weight], dim=-1)[:, 0], EPS), expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_formula(shape: tuple[int, ...]) -> None:
    for dtype in arrays.dtypes_of("triton"):
        check(shape, dtype)


@pytest.mark.parametrize(
    "spoiled",
    [
        lambda total, normed: (total, normed * (1 + 1e-4)),
        lambda total, normed: (total + 1e-6, normed),
        lambda total, normed: (normed, total),
        lambda total, normed: (total, normed.roll(1, 0)),
    ],
    ids="scaled added swapped rows".split(),
)
def test_something_else_is_noticed(spoiled) -> None:
    check((3, 48), "float32")
    with pytest.raises(AssertionError):
        check((3, 48), "float32", spoiled)


def test_rounding_is_that_of_transformers() -> None:
    """Of the sum, before the weight and after it: bit for bit, but where a sum's order shows."""
    x, residual, weight = inputs((64, 48), "float16")
    _, normed = norms.add_rms_norm(x, residual, weight, EPS)
    plain = of_transformers(x + residual, weight)
    wide = of_transformers(x.float() + residual.float(), weight.float()).half()
    once = torch.from_numpy(formula(x + residual, weight)).to(plain.device, plain.dtype)
    assert (normed != plain).double().mean() < 0.005
    assert (wide != plain).double().mean() > 0.05 and (once != plain).double().mean() > 0.05


def test_inputs_may_have_strides() -> None:
    x, residual, weight = inputs((4, 6, 32), "float32")
    expected = norms.add_rms_norm(x, residual, weight, EPS)
    strided = x.transpose(0, 1).contiguous().transpose(0, 1), torch.stack([residual, x], dim=-1)[..., 0]
    found = norms.add_rms_norm(*strided, torch.stack([weight, weight], dim=-1)[:, 0], EPS)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert all(a.data_ptr() not in (x.data_ptr(), residual.data_ptr()) for a in found)


def test_no_rows() -> None:
    x, residual, weight = inputs((0, 8), "float32")
    assert list(norms.rms_norm(x, weight, EPS).shape) == [0, 8]
    assert [list(a.shape) for a in norms.add_rms_norm(x, residual, weight, EPS)] == [[0, 8], [0, 8]]


def test_what_it_refuses() -> None:
    x, residual, weight = inputs((2, 8), "float32")
    with pytest.raises(KindError, match="add_rms_norm: triton takes residual in float32"):
        norms.add_rms_norm(x, residual.double(), weight, EPS)
    wide = torch.zeros(1, norms.WIDEST + 1, device=arrays.DEVICE)
    wrong = [(x[:1], residual, weight), (x, residual, weight[:4]), (wide, wide, wide[0])]
    wrong += [(x.half(), residual, weight), (x, residual, weight.half())]
    for given in wrong:
        with pytest.raises(ArgumentError, match="one dtype and rows of at most 16384 are needed, got"):
            norms.add_rms_norm(*given, EPS)
    with pytest.raises(KindError, match="rms_norm: triton takes x in float32"):
        norms.rms_norm(x.double(), weight, EPS)
    for given in [(x, weight[:4]), (wide, wide[0]), (x, weight.half())]:
        with pytest.raises(ArgumentError, match="rms_norm: a weight for each column, one dtype and rows of at most"):
            norms.rms_norm(*given, EPS)
