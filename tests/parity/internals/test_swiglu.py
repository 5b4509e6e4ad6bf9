"""`swiglu`: the first half of an MLP with few tokens in one launch, against float64."""

from importlib import import_module

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("triton", reason="triton is not installed")

from zigzag import ArgumentError, KindError  # noqa: E402
from zigzag.backends import triton as triton_ops  # noqa: E402
from zigzag.conformance import arrays  # noqa: E402
from zigzag.conformance.tolerance import assert_no_worse  # noqa: E402

gemv, module = (import_module(f"zigzag.backends.triton.{name}") for name in ("gemv", "swiglu"))

pytestmark = pytest.mark.skipif(bool(triton_ops.unavailable()), reason=triton_ops.unavailable() or "it is available")

SIZES = ((96, 40), (50, 37), (1100, 5), (16, 1))
TOKENS = (1, 2, 5, 16)
silu = torch.nn.functional.silu


def inputs(size: tuple[int, int], tokens: int, dtype: str) -> tuple:
    """(x, gate, up): products around 1, so that silu is far from a line and from 0."""
    width, inner = size
    rng = np.random.default_rng((width, inner, tokens))
    drawn = [rng.standard_normal(shape) for shape in ((1, tokens, width), (inner, width), (inner, width))]
    drawn[1:] = [2 * array / np.sqrt(width) for array in drawn[1:]]
    return tuple(torch.from_numpy(array).to(arrays.DEVICE, getattr(torch, dtype)) for array in drawn)


def check(size: tuple[int, int], tokens: int, dtype: str, compute=module.swiglu) -> None:
    """What `compute` gives is no worse than torch's operations in the same dtype."""
    x, gate, up = inputs(size, tokens, dtype)
    before = x.clone(), gate.clone(), up.clone()
    found = compute(x, gate, up)
    wide, first, second = x.double(), gate.double(), up.double()
    exact, naive = silu(wide @ first.T) * (wide @ second.T), silu(x @ gate.T) * (x @ up.T)
    given = {"dtype": dtype, "factor": 1.0, "terms": size[0] if dtype == "float32" else 1}
    assert_no_worse(found.double().cpu(), exact.cpu(), naive.double().cpu(), **given)
    assert found.dtype == x.dtype and found.is_contiguous()
    assert all(torch.equal(a, b) for a, b in zip(before, (x, gate, up), strict=True)), "inputs were changed"


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_formula(size: tuple[int, int]) -> None:
    for dtype in arrays.dtypes_of("triton"):
        for tokens in TOKENS:
            check(size, tokens, dtype)


@pytest.mark.parametrize(("tokens", "rows"), [(1, 1), (3, 16)])
@pytest.mark.parametrize(("table", "small"), [("LARGE_MATRICES", 0), ("SMALL_MATRICES", 10_000)])
def test_rows_in_blocks(tokens: int, rows: int, table: str, small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = gemv.Launch(rows, 16, 1, 2)
    for each in ("LARGE_MATRICES", "SMALL_MATRICES"):
        monkeypatch.setattr(module, each, (None, None))
    monkeypatch.setattr(module, "SMALL", small)
    monkeypatch.setattr(module, table, (None, tiny) if tokens > 1 else (tiny, None))
    check((50, 37), tokens, "float32")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, gate, up: module.swiglu(x, up, gate),
        lambda x, gate, up: module.swiglu(x, gate.roll(1, 0), up),
        lambda x, gate, up: module.swiglu(x, gate, up.roll(1, 0)),
        lambda x, gate, up: module.swiglu(x.roll(1, 1), gate, up),
        lambda x, gate, up: module.swiglu(x, gate, up) * (1 + 1e-4),
        lambda x, gate, up: torch.sigmoid(x @ gate.T) * (x @ up.T),
    ],
    ids="exchanged gates ups tokens scaled sigmoid".split(),
)
def test_something_else_is_noticed(wrong) -> None:
    check((50, 37), 5, "float32")
    with pytest.raises(AssertionError, match="error"):
        check((50, 37), 5, "float32", wrong)


@pytest.mark.parametrize("tokens", [1, 5])
def test_the_result_alone_is_rounded(tokens: int) -> None:
    x, gate, up = inputs((96, 40), tokens, "float16")
    exact = (silu(x.double() @ gate.double().T) * (x.double() @ up.double().T)).half()
    plain = silu(x @ gate.T) * (x @ up.T)
    assert (module.swiglu(x, gate, up) != exact).double().mean() < 0.03 < (plain != exact).double().mean()


def test_inputs_may_have_strides() -> None:
    x, gate, up = inputs((96, 40), 5, "float32")
    for strided in (torch.stack([x, -x], dim=-1)[..., 0], x.mT.contiguous().mT):
        assert not strided.is_contiguous()
        assert torch.equal(module.swiglu(strided, gate, up), module.swiglu(x, gate, up))
    assert list(module.swiglu(x[:, :0], gate, up).shape) == [1, 0, 40]


def test_what_it_refuses() -> None:
    x, gate, up = inputs((96, 40), 5, "float32")
    with pytest.raises(KindError, match="swiglu: triton takes x in float32"):
        module.swiglu(x.double(), gate, up)
    many = torch.zeros(17, 96, device=arrays.DEVICE)
    wrong = [(x, gate[:3], up), (x, gate, up.half()), (x, gate, up.T.contiguous().T), (many, gate, up)]
    wrong += [(x[..., :50], gate, up), (x.half(), gate, up)]
    for given in wrong:
        with pytest.raises(ArgumentError, match=r"swiglu: at most 16 tokens .* and two contiguous matrices"):
            module.swiglu(*given)
