"""The one spelling of what NumPy, CuPy and torch spell differently; and gradients pass through attention in torch."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from zigzag import reference  # noqa: E402
from zigzag.backends.eager import arrays  # noqa: E402
from zigzag.backends.eager.attention import attention, merge  # noqa: E402
from zigzag.backends.eager.head_scores import output_deviation  # noqa: E402

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
    "ranked, many ties": (lambda x: arrays.ranked(x)[1], np.tile([1.0, 2.0, 1.0], (2, 40))),
    "softmax": (arrays.softmax, ROWS),
    "softmax of large numbers": (arrays.softmax, np.array([[1000.0, 999.0], [-1000.0, -1000.0]])),
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


@pytest.mark.parametrize("name", ["compute_dtype", "masked_fill", "put a number", "topk", "softmax", "sigmoid"])
def test_single_precision_stays(name: str) -> None:
    """Nothing is widened on the way, and what is given is left as it was."""
    function, rows, *rest = CALLS[name]
    for library in (np.asarray, torch.from_numpy):
        given = library(rows.astype(np.float32))
        made = function(given, *map(library, rest))
        assert str(made.dtype).removeprefix("torch.") == "float32"
        assert np.array_equal(arrays.to_host(given), rows.astype(np.float32))
    assert arrays.compute_dtype(torch.zeros(1, dtype=torch.bfloat16)) is torch.float32
    assert arrays.arange(torch.zeros(1), 3, dtype=torch.float32).dtype is torch.float32


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


def test_shapes_of_nothing() -> None:
    """No rows, no numbers in a value, no pages."""
    zeros = torch.zeros
    output, lse = attention(zeros(0, 4, 300, 8), zeros(0, 2, 300, 8), zeros(0, 2, 300, 8), sink=2, recent=4)
    assert output.shape == (0, 4, 300, 8) and lse.shape == (0, 4, 300)
    output, _ = attention(zeros(1, 4, 300, 8), zeros(1, 2, 300, 8), zeros(1, 2, 300, 0), sink=2, recent=4)
    assert output.shape == (1, 4, 300, 0)
    at, table = torch.tensor([[0]]), zeros(1, 0, dtype=torch.int64)
    pages = zeros(3, 1, 4, 8)
    output, lse = attention(zeros(1, 2, 1, 8), pages, pages, query_positions=at, block_table=table)
    assert not output.any() and (lse == -torch.inf).all()


@pytest.mark.parametrize("library", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_infinite_scores_and_nan_values(library) -> None:
    """As the reference: an infinite score has an infinite lse; a row that is NaN deviates by 0."""
    query = np.array([[1.0, 1.0], [np.inf, 1.0]])[None, None]
    with np.errstate(invalid="ignore"):
        _, lse = attention(*map(library, (query, np.ones((1, 1, 2, 2)), np.ones((1, 1, 2, 2)))))
    assert np.isfinite(arrays.to_host(lse)[0, 0, 0]) and arrays.to_host(lse)[0, 0, 1] == np.inf
    states, value = np.random.default_rng(0).standard_normal((2, 1, 1, 6, 2))  # key and query alike
    value[0, 0, 2] = np.nan

    def output_of(q, k, v, **rest):
        return attention(q, k, v, **rest)[0]

    found = output_deviation(output_of, *map(library, (states, states, value)), sink=1, recent=1)
    want = reference.output_deviation(states, states, value, sink=1, recent=1)
    np.testing.assert_allclose(arrays.to_host(found), want, rtol=1e-12)
    assert not want[0, 0, 3:].any()
