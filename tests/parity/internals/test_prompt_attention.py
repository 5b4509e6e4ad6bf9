"""Many queries in two parts of keys: with a stand-in for cuDNN's kernel on the CPU, with itself on a GPU."""

from functools import partial
from importlib import import_module

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("triton", reason="triton is not installed")

from zigzag import reference  # noqa: E402
from zigzag.backends import triton as triton_ops  # noqa: E402
from zigzag.backends.triton import prompt_attention  # noqa: E402
from zigzag.backends.triton.arguments import layout  # noqa: E402
from zigzag.conformance.arrays import DEVICE, to_numpy  # noqa: E402

pytestmark = pytest.mark.skipif(bool(triton_ops.unavailable()), reason=triton_ops.unavailable() or "it is available")
triton_attention = import_module("zigzag.backends.triton.attention")  # the package has the op under this name
ON_GPU = DEVICE != "cpu"
CLOSE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def fused(query, key, value, scale, *, is_causal: bool):
    """What cuDNN's kernel gives, its output in the queries' order in memory."""
    positions = {"query_positions": np.arange(query.shape[2]), "key_positions": np.arange(key.shape[2])}
    if not is_causal:
        positions["query_positions"] = np.full(query.shape[2], key.shape[2])
    output, lse = reference.attention(*map(to_numpy, (query, key, value)), scale=scale, **positions)
    laid = torch.from_numpy(output).to(query.dtype).transpose(1, 2).contiguous().transpose(1, 2)
    return laid, torch.from_numpy(lse).float()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> list:
    """Small steps; which calls of the stand-in there were: (queries, keys, is_causal)."""
    calls: list = []

    def noted(query, key, value, scale, *, is_causal: bool):
        calls.append((query.shape[2], key.shape[2], is_causal))
        return fused(query, key, value, scale, is_causal=is_causal)

    monkeypatch.setattr(prompt_attention, "KEYS", 8)
    monkeypatch.setattr(prompt_attention, "QUERIES", 4)
    monkeypatch.setattr(prompt_attention, "fused", noted)
    return calls


def states(queries: int, keys: int, *, size: int = 16, dtype=torch.float32, batch: int = 2) -> list:
    rng = np.random.default_rng(queries * 100 + keys)
    query = torch.from_numpy(rng.standard_normal((batch, queries, 4, size))).to(dtype).transpose(1, 2)
    key, value = (torch.from_numpy(rng.standard_normal((batch, 2, keys + 5, size))).to(dtype) for _ in range(2))
    key[:, :, keys:], value[:, :, keys:] = torch.nan, torch.nan  # room in the cache that nothing was written to
    return [query, key[:, :, :keys], value[:, :, :keys]]


def agrees(arrays: list, found: tuple, scale: float | None = None) -> None:
    exact = reference.attention(*map(to_numpy, arrays), scale=scale)
    close = CLOSE[arrays[0].dtype]
    for one, true in zip(found, exact, strict=True):
        assert one.shape == true.shape
        np.testing.assert_allclose(to_numpy(one), true, rtol=0, atol=close)


def given(arrays: list, scale: float | None = None) -> tuple:
    kernel = partial(triton_attention.over_keys, scale=scale)
    return prompt_attention.causal(*arrays, scale, kernel)


@pytest.mark.skipif(ON_GPU, reason="the stand-in works on the host")
@pytest.mark.parametrize(
    ("queries", "keys", "calls"),
    [
        (8, 8, [(8, 8, True)]),
        (7, 7, [(8, 8, True)]),
        (5, 21, [(8, 16, False), (8, 8, True)]),
        (8, 16, [(8, 8, False), (8, 8, True)]),
        (6, 9, []),
        (6, 17, [(8, 8, False)]),
    ],
)
@pytest.mark.parametrize("scale", [None, 0.7])
def test_every_division_of_the_keys(small: list, queries: int, keys: int, calls: list, scale: float | None) -> None:
    arrays = states(queries, keys)
    agrees(arrays, given(arrays, scale), scale)
    assert small == calls


@pytest.mark.skipif(ON_GPU, reason="the stand-in works on the host")
def test_the_output_stays_in_the_order_of_the_queries(small: list) -> None:
    output, _ = given(states(5, 21))
    assert output.transpose(1, 2).stride()[2:] == (16, 1) and output.stride(2) == 4 * 16


@pytest.mark.skipif(ON_GPU, reason="the stand-in works on the host")
@pytest.mark.parametrize("wrong", ["triangle for all", "no triangle", "lse in base 2"])
def test_the_comparison_can_fail(small: list, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    def off(query, key, value, scale, *, is_causal: bool):
        is_causal = {"triangle for all": True, "no triangle": False}.get(wrong, is_causal)
        output, lse = fused(query, key, value, scale, is_causal=is_causal)
        return output, lse / np.log(2) if wrong == "lse in base 2" else lse

    monkeypatch.setattr(prompt_attention, "fused", off)
    arrays = states(6, 22)
    with pytest.raises(AssertionError):
        agrees(arrays, given(arrays))


@pytest.mark.parametrize(("tokens", "size"), [(1, 16), (33, 24)])
@pytest.mark.parametrize("far", [0.0, 300.0, -300.0])
def test_join(tokens: int, size: int, far: float) -> None:
    """Parts of very different weight, strided; over as many keys as there are."""
    rng = np.random.default_rng(tokens)
    parts = rng.standard_normal((2, 2, 3, tokens, size)), rng.standard_normal((2, 2, 3, tokens))
    parts[1][0] += far
    outputs, lses = (torch.from_numpy(part).float().to(DEVICE) for part in parts)
    exact = reference.merge(*map(to_numpy, (outputs, lses)))
    first = outputs[0].transpose(1, 2).contiguous().transpose(1, 2), torch.stack([lses[0]] * 2, dim=-1)[..., 0]
    found = prompt_attention.join(first, (outputs[1], lses[1]))
    for one, true in zip(found, exact, strict=True):
        np.testing.assert_allclose(to_numpy(one), true, rtol=0, atol=1e-5)


def test_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_attention, "_has_fused", lambda device: True)
    half = torch.float16

    def takes(*arrays) -> bool:
        return prompt_attention.takes(*map(layout, arrays))

    def like(queries=512, keys=600, size=16, dtype=half, value_size=None):
        query, key, value = states(queries, keys, size=size, dtype=dtype, batch=1)
        return query, key, value[..., :value_size]

    assert takes(*like())
    assert not takes(*like(queries=511))
    assert not takes(*like(keys=511)), "some queries would see nothing"
    assert not takes(*like(dtype=torch.float32))
    assert not takes(*like(size=20)) and not takes(*like(size=136))
    assert not takes(*like(value_size=8))
    query, key, value = like()
    assert not takes(query, key.to(torch.bfloat16), value)
    assert not takes(query.transpose(2, 3).contiguous().transpose(2, 3), key, value)
    monkeypatch.setattr(prompt_attention, "_has_fused", lambda device: False)
    assert not takes(*like())
    monkeypatch.undo()
    assert takes(*(x.to(DEVICE) for x in like())) == ON_GPU


def test_attention_hands_over_what_it_takes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_attention, "takes", lambda *states: True)
    monkeypatch.setattr(triton_attention, "plan_of", triton_attention.plan_of.__wrapped__)
    monkeypatch.setattr(prompt_attention, "causal", lambda *_: "by parts")
    arrays = [each.to(DEVICE) for each in states(4, 9)]
    assert triton_ops.attention(*arrays) == "by parts"
    where = torch.arange(9, device=DEVICE)
    table = torch.zeros(2, 1, dtype=torch.int32, device=DEVICE)
    for options in (
        {"sink": 1, "recent": 2},
        {"query_positions": where[-4:]},
        {"key_positions": where},
        {"parents": [-1]},
        {"block_table": table},
    ):
        assert isinstance(triton_ops.attention(*arrays, **options), tuple)


@pytest.mark.skipif(not ON_GPU, reason="cuDNN's kernel needs a GPU")
@pytest.mark.parametrize(
    ("queries", "keys"), [(512, 512), (700, 700), (1024, 5120), (600, 4696), (600, 4700), (513, 9999), (8192, 16384)]
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_on_a_gpu(queries: int, keys: int, dtype) -> None:
    """Against float64 on a part of the heads; the error of the kernel alone is of the same size."""
    arrays = [each.to(DEVICE) for each in states(queries, keys, size=128, dtype=dtype, batch=1)]
    assert prompt_attention.takes(*map(layout, arrays))
    found, alone = triton_ops.attention(*arrays), triton_attention.over_keys(*arrays)
    query, key, value = (each.double() for each in arrays)
    seen = torch.arange(keys, device=DEVICE) <= torch.arange(keys - queries, keys, device=DEVICE)[:, None]
    scores = (query[:, :1] @ key[:, :1].mT / 128**0.5).masked_fill(~seen, -torch.inf)
    exact, lse = scores.softmax(-1) @ value[:, :1], scores.logsumexp(-1)
    errors = [(one[0][:, :1].double() - exact).norm() / exact.norm() for one in (found, alone)]
    assert errors[0] <= 2 * errors[1]
    torch.testing.assert_close(found[1][:, :1].double(), lse, rtol=0, atol=1e-4)
