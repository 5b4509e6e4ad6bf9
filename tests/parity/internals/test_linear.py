"""`several`: products of matrices with few tokens in one launch, against float64."""

from importlib import import_module

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("triton", reason="triton is not installed")

from zigzag import ArgumentError, KindError  # noqa: E402
from zigzag.backends import triton as triton_ops  # noqa: E402
from zigzag.conformance import arrays  # noqa: E402
from zigzag.conformance.tolerance import assert_no_worse  # noqa: E402

gemv, linear = (import_module(f"zigzag.backends.triton.{name}") for name in ("gemv", "linear"))

pytestmark = pytest.mark.skipif(bool(triton_ops.unavailable()), reason=triton_ops.unavailable() or "it is available")

CASES = {  # width, rows of each matrix
    "three": (96, (40, 8, 8)),
    "two, no power of two": (50, (37, 21)),
    "one, wide": (1100, (19,)),
    "a row each": (16, (1, 1, 1)),
}
ALL = pytest.mark.parametrize("name", CASES)
TOKENS = (1, 2, 5, 16)


def random(*shape: int, dtype: str = "float32", seed: int = 0) -> "torch.Tensor":
    drawn = np.random.default_rng((seed, *shape)).standard_normal(shape)
    return torch.from_numpy(drawn).to(arrays.DEVICE, getattr(torch, dtype))


def inputs(name: str, tokens: int, dtype: str, biased: bool) -> tuple:
    """(x [1, tokens, width], matrices); every number is of its own."""
    width, sizes = CASES[name]
    weights = [random(size, width, dtype=dtype, seed=i) for i, size in enumerate(sizes)]
    biases = [4 * random(size, dtype=dtype, seed=10 + i) if biased else None for i, size in enumerate(sizes)]
    return random(1, tokens, width, dtype=dtype, seed=20), list(zip(weights, biases, strict=True))


def formula(x, weight, bias, added=None) -> "torch.Tensor":
    result = x.double() @ weight.double().T
    return result + sum(term.double() for term in (bias, added) if term is not None)


def check(
    name: str, tokens: int, dtype: str, biased: bool, compute=lambda x, matrices: linear.several(x, matrices)
) -> None:
    """What `compute` gives is no worse than torch's product in the same dtype."""
    x, matrices = inputs(name, tokens, dtype, biased)
    found = compute(x, matrices)
    assert len(found) == len(matrices)
    for result, (weight, bias) in zip(found, matrices, strict=True):
        exact, naive = formula(x, weight, bias), torch.nn.functional.linear(x, weight, bias)
        given = {"dtype": dtype, "factor": 1.0, "terms": x.shape[-1] if dtype == "float32" else 1}
        assert_no_worse(result.double().cpu(), exact.cpu(), naive.double().cpu(), **given)
        assert result.dtype == x.dtype and result.is_contiguous()


@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
@ALL
def test_the_formula(name: str, biased: bool) -> None:
    for dtype in arrays.dtypes_of("triton"):
        for tokens in TOKENS:
            check(name, tokens, dtype, biased)


@pytest.mark.parametrize(("tokens", "tables"), [(1, (1, 16)), (3, (16, 16))])
@ALL
def test_rows_in_blocks(name: str, tokens: int, tables: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Large matrices and small ones have launches of their own; of the other table nothing is taken."""
    tiny = gemv.Launch(tables[0], tables[1], 1, 2)
    for table, small in (("LARGE_MATRICES", 0), ("SMALL_MATRICES", 10_000)):
        other = "LARGE_MATRICES" if small else "SMALL_MATRICES"
        with monkeypatch.context() as patch:
            patch.setattr(linear, "SMALL", small)
            patch.setattr(linear, table, (None, tiny) if tokens > 1 else (tiny, None))
            patch.setattr(linear, other, (None, None))
            check(name, tokens, "float32", True)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, pairs: linear.several(x, [(weight, 2 * bias) for weight, bias in pairs]),
        lambda x, pairs: linear.several(x, [(weight, None) for weight, _ in pairs]),
        lambda x, pairs: linear.several(x, [(weight.roll(1, 0), bias) for weight, bias in pairs]),
        lambda x, pairs: linear.several(x, [(weight, bias.roll(1, 0)) for weight, bias in pairs]),
        lambda x, pairs: linear.several(x.roll(1, 1), pairs),
        lambda x, pairs: linear.several(x, [pairs[0], pairs[2], pairs[1]]),
        lambda x, pairs: [y * (1 + 1e-4) for y in linear.several(x, pairs)],
        lambda x, pairs: linear.several(torch.cat([x[..., :-1], 0 * x[..., -1:]], -1), pairs),
    ],
    ids="twice unbiased rows biases tokens exchanged scaled short".split(),
)
def test_something_else_is_noticed(wrong) -> None:
    check("three", 5, "float32", True)
    with pytest.raises(AssertionError, match="error"):
        check("three", 5, "float32", True, wrong)


@pytest.mark.parametrize("tokens", [1, 5])
def test_a_sum_is_rounded_once(tokens: int) -> None:
    """What is added meets the product in float32; also a result wider than the inputs."""
    x, ((weight, bias),) = inputs("one, wide", tokens, "float16", True)
    added = 30 * random(1, tokens, len(weight), dtype="float16", seed=30)
    (result,) = linear.several(x, [(weight, bias)], added=added)
    exact = formula(x, weight, bias, added)
    twice = torch.nn.functional.linear(x, weight, bias) + added
    assert (result != exact.half()).double().mean() < 0.02 < (twice != exact.half()).double().mean()
    strided = torch.stack([added, x[..., : len(weight)]], dim=-1)[..., 0]
    assert torch.equal(linear.several(x, [(weight, bias)], added=strided)[0], result)
    (wide,) = linear.several(x, [(weight, bias)], dtype=torch.float32)
    assert wide.dtype == torch.float32
    np.testing.assert_allclose(wide.cpu(), formula(x, weight, bias).cpu(), rtol=0, atol=2e-4)
    assert (wide != wide.half()).double().mean() > 0.9


def test_inputs_may_have_strides_and_stay() -> None:
    x, matrices = inputs("three", 5, "float32", True)
    before = [x.clone(), *(array.clone() for pair in matrices for array in pair)]
    expected = linear.several(x, matrices)
    for strided in (torch.stack([x, -x], dim=-1)[..., 0], x.mT.contiguous().mT):
        assert not strided.is_contiguous()
        assert all(torch.equal(a, b) for a, b in zip(linear.several(strided, matrices), expected, strict=True))
    after = [x, *(array for pair in matrices for array in pair)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), "inputs were changed"


def test_no_number_of_another_row_or_token_counts() -> None:
    """One that is no number stays where it is, whatever is read beside it."""
    x, matrices = inputs("two, no power of two", 3, "float32", False)
    x[0, 1], matrices[0][0][4] = torch.nan, torch.nan
    first, second = linear.several(x, matrices)
    assert second[0, ::2].isfinite().all() and second[0, 1].isnan().all()
    assert (~first[0, ::2].isfinite()).sum(0).nonzero().flatten().tolist() == [4]


def test_no_tokens() -> None:
    x, matrices = inputs("three", 1, "float32", True)
    assert [list(a.shape) for a in linear.several(x[:, :0], matrices)] == [[1, 0, 40], [1, 0, 8], [1, 0, 8]]


def test_what_it_refuses() -> None:
    x, matrices = inputs("three", 2, "float32", True)
    (weight, bias), *rest = matrices
    with pytest.raises(KindError, match="several: triton takes x in float32"):
        linear.several(x.double(), matrices)
    for given in (
        [],
        [*matrices, matrices[0]],
        [(weight, None), *rest],
        [(weight.half(), bias)],
        [(weight[:, :48], bias)],
        [(weight.T.contiguous().T, bias)],
        [(weight, bias.half())],
        [(weight, bias[:5])],
        [(weight, torch.stack([bias, bias], 1)[:, 0])],
    ):
        with pytest.raises(ArgumentError, match=r"several: at most 16 tokens \[..., 96\] in torch.float32"):
            linear.several(x, given)
    with pytest.raises(ArgumentError, match="got 17 tokens"):
        linear.several(random(17, 96), matrices)
    for added, count in ((x, 1), (x[..., :40].half(), 1), (x[:, :1, :40], 1), (x[..., :40], 2)):
        with pytest.raises(ArgumentError, match=f"to add to {count} products"):
            linear.several(x, matrices[:count], added=added)
