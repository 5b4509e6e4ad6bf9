"""The one spelling of what NumPy, CuPy and torch spell differently; and gradients pass through attention in torch."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from zigzag.backends.eager import arrays  # noqa: E402
from zigzag.backends.eager.attention import attention, merge  # noqa: E402

ROWS = np.array([[0.5, 2.0, -1.0, 2.0], [3.0, -np.inf, 0.0, 1.0]])
NAN, INDEX = np.array([[np.nan, 1.0, -np.inf, np.inf]]), np.array([[3], [0]])
CALLS = {
    "compute_dtype": (lambda x: arrays.full(arrays.cast(x, arrays.compute_dtype(x)), (2, 1), 3), ROWS),
    "places": (arrays.places, ROWS),
    "arange": (lambda x: arrays.arange(x, 5, 0, -2), ROWS),
    "along": (arrays.along, ROWS, INDEX),
    "put a column": (arrays.put, ROWS, INDEX, ROWS[:, :1]),
    "put a number": (lambda x, index: arrays.put(x, index, 7.0), ROWS, np.array([[3, 1], [0, 2]])),
    "masked_fill": (lambda x, mask: arrays.masked_fill(x, mask, -1), ROWS, ROWS > 0),
    "masked_fill grows": (lambda x, mask: arrays.masked_fill(x, mask, -1), np.arange(4), ROWS > 0),
    "replace_nan": (lambda x: arrays.replace_nan(x, 4.0), NAN),
    "equal": (lambda x: arrays.equal(x, x[:, 1:2], out=arrays.namespace(x).empty_like(x)), ROWS),
    "topk": (lambda x: arrays.topk(x, 2), ROWS),
    "ranked, its order": (lambda x: arrays.ranked(x)[1], ROWS),
    "ranked and unranked": (lambda x: arrays.unranked(*arrays.ranked(x)), ROWS),
    "softmax": (arrays.softmax, ROWS),
    "sigmoid": (arrays.sigmoid, ROWS),
    "logsumexp": (lambda x: arrays.logsumexp(x, axis=0), np.array([[1.0, -np.inf], [2.0, -np.inf]])),
}


@pytest.mark.parametrize("name", CALLS)
def test_one_spelling(name: str) -> None:
    function, *given = CALLS[name]
    with np.errstate(divide="ignore"):
        ours = function(*given)
    theirs = function(*map(torch.from_numpy, given))
    assert type(ours) is np.ndarray and type(theirs) is torch.Tensor
    np.testing.assert_allclose(arrays.to_host(theirs), ours, rtol=1e-15)
    assert str(ours.dtype) == str(theirs.dtype).removeprefix("torch.")


def test_the_library_of_a_subclass_is_its_base() -> None:
    class Rows(np.ndarray):
        pass

    assert arrays.namespace(ROWS.view(Rows)) is np and arrays.namespace(np.float32(1)) is np
    assert arrays.namespace(torch.nn.Parameter(torch.zeros(1))) is torch


def test_arrays_come_and_go() -> None:
    like = torch.zeros(1)
    assert arrays.from_host(INDEX, like).tolist() == INDEX.tolist() and arrays.from_host(INDEX, ROWS) is INDEX
    assert arrays.to_host(torch.ones(2, dtype=torch.bfloat16, requires_grad=True)).dtype == np.float64


@pytest.mark.parametrize(
    "mask", [{}, {"sink": 1, "recent": 2}, {"parents": [-1, 0]}], ids=["full", "streaming", "tree"]
)
def test_gradients_pass_through_attention(mask: dict) -> None:
    torch.manual_seed(0)
    states = [torch.randn(1, heads, 5, 3, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2)]
    assert torch.autograd.gradcheck(lambda *given: attention(*given, **mask), states)
    outputs, lses = (torch.randn(2, 1, 2, 3, *rest, dtype=torch.float64, requires_grad=True) for rest in ([4], []))
    assert torch.autograd.gradcheck(merge, (outputs, lses))
