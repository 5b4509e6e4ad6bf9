"""`rotate`: norms of heads, rotary embedding and the cache write in one launch, against the formula in float64."""

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

rotary = import_module("zigzag.backends.triton.rotary")

pytestmark = pytest.mark.skipif(bool(triton_ops.unavailable()), reason=triton_ops.unavailable() or "it is available")

EPS, UNTOUCHED, SLOTS = 1e-3, -77.0, 60
SIZES = {  # rows, tokens, heads, groups, D, R
    "Air": (1, 1, 12, 1, 128, 64),
    "whole heads": (2, 3, 4, 2, 64, 64),
    "no power of two": (2, 3, 6, 3, 96, 32),
    "odd tiles": (1, 2, 5, 5, 40, 12),
    "prompt": (2, 37, 3, 1, 16, 8),
    "nothing turned": (1, 2, 2, 1, 16, 0),
}
ALL = pytest.mark.parametrize("name", SIZES)


def random(*shape: int, dtype: str = "float32", seed: int = 0) -> "torch.Tensor":
    drawn = np.random.default_rng((seed, *shape)).standard_normal(shape)
    return torch.from_numpy(drawn).to(arrays.DEVICE, getattr(torch, dtype))


def inputs(name: str, dtype: str = "float32") -> tuple:
    """(query, key, value, cos, sin, norms) of different numbers; every row has angles of its own."""
    rows, tokens, heads, groups, size, turned = SIZES[name]
    query, key, value = (
        3 * random(rows, tokens, n, size, dtype=dtype, seed=i) for i, n in enumerate((heads, groups, groups))
    )
    angles = random(rows, tokens, turned, seed=3)
    cos, sin = (wave.to(query.dtype) for wave in (angles.cos(), angles.sin()))
    return query, key, value, cos, sin, (random(size, dtype=dtype, seed=4), random(size, dtype=dtype, seed=5))


def half_turned(x: "torch.Tensor") -> "torch.Tensor":
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def interleaved(x: "torch.Tensor") -> "torch.Tensor":
    return torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)


def formula(states, cos, sin, weight=None, turn=half_turned) -> np.ndarray:
    """[B, heads, T, D] in float64."""
    x, cos, sin = states.double(), cos.double()[:, :, None], sin.double()[:, :, None]
    if weight is not None:
        x = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight.double()
    turned, rest = x.split([cos.shape[-1], x.shape[-1] - cos.shape[-1]], dim=-1)
    return torch.cat([turned * cos + turn(turned) * sin, rest], dim=-1).transpose(1, 2).cpu().numpy()


@torch.no_grad()
def of_transformers(query, key, cos, sin, norms) -> tuple:
    """The same in the dtype of the states, operation by operation."""
    states = []
    for x, weight in zip((query, key), norms or (None, None), strict=True):
        if weight is not None:
            norm = glm.Glm4MoeRMSNorm(x.shape[-1], EPS)
            norm.weight = torch.nn.Parameter(weight)
            x = norm(x)
        states.append(x.transpose(1, 2))
    return glm.apply_rotary_pos_emb(*states, cos, sin)


def rotated(query, key, value, cos, sin, norms):
    return rotary.rotate(query, key, value, cos, sin, norms=norms, eps=0.0 if norms is None else EPS)


def check(name: str, dtype: str, normed: bool, compute=rotated) -> None:
    """What `compute` gives is no worse than transformers' code in the same dtype."""
    query, key, value, cos, sin, norms = inputs(name, dtype)
    norms = norms if normed else None
    results = compute(query, key, value, cos, sin, norms)
    plain = of_transformers(query, key, cos, sin, norms)
    for states, weight, result, naive in zip((query, key), norms or (None, None), results, plain, strict=True):
        exact = formula(states, cos, sin, weight)
        assert_no_worse(result.double().cpu(), exact, naive.double().cpu(), dtype=dtype, factor=1.0)
        assert result.dtype == states.dtype and result.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("normed", [False, True], ids=["plain", "normed"])
@ALL
def test_the_formula(name: str, normed: bool) -> None:
    for dtype in arrays.dtypes_of("triton")[: 1 if name == "prompt" and arrays.interpreted("triton") else None]:
        check(name, dtype, normed)


def interleaving(query, key, value, cos, sin, norms):
    """Pairs of neighbours instead of halves."""
    given = zip((query, key), norms, strict=True)
    return [torch.from_numpy(formula(x, cos, sin, weight, interleaved)).to(x.device, x.dtype) for x, weight in given]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda query, key, value, cos, sin, norms: rotated(query, key, value, cos, -sin, norms),
        lambda query, key, value, cos, sin, norms: rotated(query, key, value, sin, cos, norms),
        lambda query, key, value, cos, sin, norms: rotated(query, key, value, cos, sin, norms[::-1]),
        lambda query, key, value, cos, sin, norms: rotated(query, key, value, cos.flip(-1), sin.flip(-1), norms),
        lambda query, key, value, cos, sin, norms: rotated(query, key, value, cos.flip(1), sin.flip(1), norms),
        lambda query, key, value, cos, sin, norms: rotated(query, key, value, cos.flip(0), sin.flip(0), norms),
        lambda query, key, value, cos, sin, norms: rotated(query, key, value, cos, sin, None),
        lambda query, key, value, cos, sin, norms: rotated(query, value, key, cos, sin, norms),
        lambda *given: rotary.rotate(*given[:5], norms=given[5], eps=2 * EPS),
        interleaving,
    ],
    ids="sign waves norms halves tokens rows without values eps interleaved".split(),
)
def test_another_formula_is_noticed(wrong) -> None:
    check("whole heads", "float32", True)
    with pytest.raises(AssertionError, match="error"):
        check("whole heads", "float32", True, wrong)


def test_rounding_is_that_of_transformers_norm() -> None:
    """Where nothing is turned the norm's roundings are all there are: bit for bit, but where a sum's order shows."""
    *_, norms = inputs("nothing turned", "float16")
    query, cos = 3 * random(1, 64, 4, 16, dtype="float16"), random(1, 64, 0, dtype="float16")
    key = query[:, :, :1]
    result, _ = rotary.rotate(query, key, key, cos, cos, norms=norms, eps=EPS)
    plain, _ = of_transformers(query, key, cos, cos, norms)
    once = torch.from_numpy(formula(query, cos, cos, norms[0])).to(result.device, result.dtype)
    assert (result != plain).double().mean() < 0.005 < (once != plain).double().mean()


@ALL
def test_prompts_have_tiles_of_their_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotary, "FEW", 0)
    check(name, "float32", True)


def test_tiles_are_many() -> None:
    """More heads than either tile takes."""
    for few in (rotary.FEW, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rotary, "FEW", few)
            patch.setitem(SIZES, "many", (1, 2, 35, 18, 8, 4))
            check("many", "float32", True)
            written("many")


def test_all_rows_may_share_their_angles() -> None:
    query, key, value, cos, sin, _ = inputs("whole heads")
    one = rotary.rotate(query, key, value, cos[:1], sin[:1])
    same = rotary.rotate(query, key, value, cos[:1].expand_as(cos), sin[:1].expand_as(sin))
    for a, b, states in zip(one, same, (query, key), strict=True):
        assert torch.equal(a, b)
        np.testing.assert_allclose(a.cpu(), formula(states, cos[:1].expand_as(cos), sin[:1].expand_as(sin)), atol=4e-6)


def slots_for(rows: int, tokens: int) -> "torch.Tensor":
    """[B, T] no two alike in a row but the last slot, where the first tokens of the last row go, as padding does."""
    where = np.stack([np.random.default_rng(row).permutation(SLOTS - 1)[:tokens] for row in range(rows)])
    where[-1, : tokens // 2] = SLOTS - 1
    return torch.from_numpy(where).to(arrays.DEVICE)


def written(name: str, shift: int = 0, swapped: bool = False, spoil=lambda buffer: None) -> None:
    """Every slot that a token goes to holds its key and value, every other what it held; of slices with gaps."""
    query, key, value, cos, sin, norms = inputs(name)
    rows, tokens, groups, size = key.shape
    where = slots_for(rows, tokens)
    whole = [torch.full((rows + 2, groups + 1, SLOTS, size + 3), UNTOUCHED, device=arrays.DEVICE) for _ in range(2)]
    keys, values = (buffer[1:-1, 1:, :, 1:-2] for buffer in whole)
    given = rotary.Buffers(values, keys, where) if swapped else rotary.Buffers(keys, values, where + shift)
    new_query, new_key = rotary.rotate(query, key, value, cos, sin, norms=norms, eps=EPS, buffers=given)
    spoil(whole[0])
    plain = rotary.rotate(query, key, value, cos, sin, norms=norms, eps=EPS)
    assert torch.equal(new_query, plain[0]) and torch.equal(new_key, plain[1])
    for buffer, inside, states in zip(whole, (keys, values), (new_key, value.transpose(1, 2)), strict=True):
        for row in range(rows):
            own = {int(slot): token for token, slot in enumerate(where[row]) if slot < SLOTS - 1}
            for slot in range(SLOTS - 1):
                expected = states[row, :, own[slot]] if slot in own else torch.full_like(states[row, :, 0], UNTOUCHED)
                assert torch.equal(inside[row, :, slot], expected), (row, slot)
            padding = inside[row, :, -1]
            options = [states[row, :, token] for token in range(tokens) if where[row, token] == SLOTS - 1]
            options = torch.stack(options or [torch.full_like(padding, UNTOUCHED)])
            assert (options == padding).any(dim=0).all()  # of one of them each: on a GPU they come in any order
        inside.fill_(UNTOUCHED)
        assert (buffer == UNTOUCHED).all(), "written outside the slice"


@pytest.mark.parametrize("few", [rotary.FEW, 0])
@ALL
def test_keys_and_values_go_to_their_slots(name: str, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotary, "FEW", few)
    written(name)


@pytest.mark.parametrize(
    "wrong",
    [
        {"shift": -1},
        {"swapped": True},
        {"spoil": lambda buffer: buffer[0, 0, 0].fill_(1.0)},
        {"spoil": lambda buffer: buffer[1, 1, -2].fill_(1.0)},
    ],
    ids="shifted swapped outside unused".split(),
)
def test_other_slots_are_noticed(wrong: dict) -> None:
    written("no power of two")
    with pytest.raises(AssertionError):
        written("no power of two", **wrong)


def test_inputs_may_have_strides() -> None:
    """Slices of one projection, every second number, places that lie in a larger array."""
    query, key, value, cos, sin, norms = inputs("no power of two")
    rows, tokens, heads, size = query.shape
    groups, where = key.shape[2], slots_for(rows, tokens)
    plain = rotary.Buffers(torch.full((rows, groups, SLOTS, size), UNTOUCHED, device=query.device), None, where)
    plain = plain._replace(values=plain.keys.clone())
    expected = rotary.rotate(query, key, value, cos, sin, norms=norms, eps=EPS, buffers=plain)
    joined = torch.cat([query, key, value], dim=2).repeat_interleave(2, dim=-1)
    parts = (part[..., ::2] for part in joined.split([heads, groups, groups], dim=2))
    waves = torch.stack([cos, sin], dim=-1).transpose(0, 1).contiguous().transpose(0, 1)
    places = torch.stack([where, where + 7], dim=-1)[..., 0]
    buffers = rotary.Buffers(*(torch.full_like(plain.keys.mT, UNTOUCHED).mT for _ in range(2)), places)
    weights = tuple(torch.stack([weight, weight], dim=-1)[:, 0] for weight in norms)
    found = rotary.rotate(*parts, waves[..., 0], waves[..., 1], norms=weights, eps=EPS, buffers=buffers)
    for one, other in zip((*found, *buffers[:2]), (*expected, *plain[:2]), strict=True):
        one, other = one[..., :-1, :], other[..., :-1, :]  # several tokens share the last slot
        torch.testing.assert_close(one, other, rtol=0, atol=4e-6)  # a GPU joins other products and sums


def test_no_tokens() -> None:
    query, key, value, cos, sin, norms = inputs("whole heads")
    none = rotary.rotate(*(x[:, :0] for x in (query, key, value, cos, sin)), norms=norms, eps=EPS)
    assert [list(x.shape) for x in none] == [[2, 4, 0, 64], [2, 2, 0, 64]]


def test_what_it_refuses() -> None:
    query, key, value, cos, sin, _ = inputs("whole heads")
    with pytest.raises(KindError, match="rotate: triton takes query in float32"):
        rotary.rotate(query.double(), key, value, cos, sin)
    for turned in (63, 66):
        angles = random(2, 3, turned)
        with pytest.raises(ArgumentError, match=f"an even number of at most 64 angles is needed, got {turned}"):
            rotary.rotate(query, key, value, angles, angles)
    for shapes in ((query, key, value[..., :32]), (query, key[:1], value[:1]), (query[..., :32], key, value)):
        with pytest.raises(ArgumentError, match=r"query \[B, T, H, D\], key and value \[B, T, G, D\] are needed"):
            rotary.rotate(*shapes, cos[..., :32], sin[..., :32])
