"""Rows in several tiles, their keys split or not, and the workspace of the parts of split keys."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("triton", reason="triton is not installed")

from zigzag import reference  # noqa: E402
from zigzag.backends import triton as triton_ops  # noqa: E402
from zigzag.backends.triton import blocks as triton_blocks  # noqa: E402
from zigzag.backends.triton.arguments import layout  # noqa: E402
from zigzag.backends.triton.blocks import Blocks, blocks_of, of_trees, trusted  # noqa: E402
from zigzag.backends.triton.parts import workspace  # noqa: E402
from zigzag.conformance.arrays import DEVICE, DTYPES, to_numpy  # noqa: E402
from zigzag.conformance.tolerance import EPSILON  # noqa: E402

triton_attention = import_module("zigzag.backends.triton.attention")  # the package has the op under this name
triton_mixed = import_module("zigzag.backends.triton.mixed_attention")

pytestmark = pytest.mark.skipif(bool(triton_ops.unavailable()), reason=triton_ops.unavailable() or "it is available")

SMALL = Blocks(16, 16, 4, 2, 1, least=1)
KEYS = 600  # enough for two programs of two blocks each, whichever card it is
Plans = list[Any]


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plans]:
    """Of `multiprocessors` and the blocks for every call (None: the table's): the list that all later plans go into."""

    def record(multiprocessors: int, blocks: Blocks | None = None) -> Plans:
        found: Plans = []
        monkeypatch.setattr(triton_blocks, "multiprocessors", lambda device: multiprocessors)
        for module in (triton_attention, triton_mixed):
            plan_of = module.plan_of.__wrapped__  # not those that were kept for other blocks
            monkeypatch.setattr(
                module, "plan_of", lambda *given, plan_of=plan_of: found.append(plan_of(*given)) or found[-1]
            )
            if blocks:
                monkeypatch.setattr(module, "blocks_of", lambda *_: blocks)
        if blocks:
            monkeypatch.setattr(triton_mixed, "mixed_blocks_of", lambda _: blocks)
        return found

    return record


def states(seed: int, dtype: Any, *shapes: tuple[int, ...]) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.standard_normal(shape)).to(DEVICE, dtype) for shape in shapes]


def placed(options: dict[str, Any]) -> dict[str, Any]:
    """Arrays on the device."""
    return {n: torch.tensor(a, device=DEVICE) if isinstance(a, np.ndarray) else a for n, a in options.items()}


def agree(found: tuple[Any, Any], true: tuple[Any, Any], value: Any) -> bool:
    """Outputs to a rounding of the weights and one of the result, lse to some of float32; NaN does not agree."""
    name = str(found[0].dtype).removeprefix("torch.")
    (output, lse), (exact, exact_lse) = map(to_numpy, found), true
    most = 2e-6 if name == "float32" else EPSILON[name] / 2 * (np.abs(to_numpy(value)).max() + np.abs(exact).max())
    return bool(np.allclose(output, exact, rtol=0, atol=most) and np.allclose(lse, exact_lse, rtol=0, atol=2e-5))


def test_workspace() -> None:
    """What `finish` writes: results as wide as products need them, and two numbers a part."""
    assert workspace(10, 3, 40) == 10 * 3 * (64 + 2)
    assert workspace(10, 1, 40) == 0


@pytest.mark.parametrize("multiprocessors", [1, 40])
@pytest.mark.parametrize(
    ("share", "queries", "dtype", "sizes", "tile"),
    [
        (12, 16, "bfloat16", (64, 64), 64),  # 192 rows
        (12, 16, "float16", (72, 80), 64),
        (12, 16, "float32", (40, 24), 64),
        (12, 16, "float16", (40, 24), 32),
        (12, 16, "bfloat16", (24, 40), 32),
        (10, 15, "float16", (64, 64), 64),  # 150, the last 42 of the third tile are none
        (3, 43, "float32", (40, 24), 64),  # 129: one row in the third tile
        (5, 12, "float16", (40, 24), 32),  # 60 rows
        (5, 12, "float16", (72, 64), 64),
    ],
)
def test_every_row_of_several_tiles(
    share: int, queries: int, dtype: str, sizes: tuple[int, int], tile: int, multiprocessors: int, plans
) -> None:
    """Each query sees a key more than the one before it; sizes are no powers of two; one split, and several."""
    if dtype not in DTYPES["triton"]:
        pytest.skip("the interpreter has no products of bfloat16")
    made = plans(multiprocessors)
    shapes = (2, 2 * share, queries, sizes[0]), (2, 2, KEYS, sizes[0]), (2, 2, KEYS, sizes[1])
    query, key, value = states(queries, getattr(torch, dtype), *shapes)
    found = triton_ops.attention(query, key, value)
    arrays = [to_numpy(each) for each in (query, key, value)]
    assert agree(found, reference.attention(*arrays), value)
    last = np.arange(KEYS - queries, KEYS)
    others = (
        reference.attention(*arrays, query_positions=np.maximum(last - share // 2, last[0])),  # some see fewer keys
        reference.attention(arrays[0][:, :, ::-1], *arrays[1:]),
    )
    assert not any(agree(found, other, value) for other in others)
    plan = made[0]
    assert plan.walk.options["TILE"] == tile and plan.walk.grid[0] == -(-share * queries // tile)
    assert (plan.walk.grid[1] > 1) == (plan.merge is not None) == (multiprocessors > 1)


def spoiled(found: tuple[Any, Any], row: int) -> tuple[Any, Any]:
    """The same but for one number of the lse."""
    lse = found[1].clone()
    lse.view(-1)[row] += 1e-4
    return found[0], lse


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_wrong_number_does_not_agree(dtype: Any) -> None:
    value = torch.ones(2, dtype=dtype)
    found = torch.tensor([1.0, 0.5], dtype=dtype), torch.tensor([5.0, 6.0])
    true = to_numpy(found[0]), to_numpy(found[1])
    assert agree(found, true, value)
    assert not agree(spoiled(found, 1), true, value)
    assert not agree((found[0] + torch.tensor([0.0, 0.05], dtype=dtype), found[1]), true, value)
    assert not agree((found[0] * torch.nan, found[1]), true, value)


@pytest.mark.parametrize("multiprocessors", [1, 64])
def test_many_tiles(multiprocessors: int, plans) -> None:
    """105 rows in programs of 16: the last one's tile is part full."""
    made = plans(multiprocessors, SMALL)
    query, key, value = states(0, torch.float32, (2, 6, 35, 16), (2, 2, 100, 16), (2, 2, 100, 16))
    true = reference.attention(*map(to_numpy, (query, key, value)))
    assert agree(triton_ops.attention(query, key, value), true, value)
    assert made[0].walk.grid[0] == 7 and (made[0].walk.grid[1] > 1) == (multiprocessors > 1)


@pytest.mark.parametrize("multiprocessors", [1, 64])
def test_parts_of_mixed_heads(multiprocessors: int, plans) -> None:
    """Several tiles of rows, keys of the full heads in order and those of the others a window; split or not."""
    made = plans(multiprocessors, SMALL)
    query, key, value = states(5, torch.float32, (2, 6, 20, 16), (2, 2, 100, 16), (2, 2, 100, 24))
    at = np.arange(80, 100)
    arrays = query, key[:, 1:], value[:, 1:], key[:, :1, -60:], value[:, :1, -60:]
    options = {"full_groups": (False, True), "sink": 0, "recent": 30}
    where = {"query_positions": at, "streaming_positions": np.arange(40, 100)}
    found = triton_ops.mixed_attention(*arrays, **options, **placed(where))
    assert agree(found, reference.mixed_attention(*map(to_numpy, arrays), **options, **where), value)
    swapped = reference.mixed_attention(*map(to_numpy, arrays), **options | {"full_groups": (True, False)}, **where)
    assert not agree(found, swapped, value)
    assert made[0].walk.grid[0] == 4 and (made[0].merge is not None) == (multiprocessors > 1)


@pytest.mark.parametrize("multiprocessors", [1, 64])
def test_plans_have_room_for_all_parts(multiprocessors: int, plans) -> None:
    """A slot for every query and head and split, whatever the tiles are."""
    made = plans(multiprocessors, SMALL)
    query, key, value = states(6, torch.float32, (2, 6, 20, 16), (2, 2, 100, 16), (2, 2, 100, 24))
    triton_ops.attention(query, key, value)
    halves = key[:, :1], value[:, :1], key[:, 1:], value[:, 1:]
    triton_ops.mixed_attention(query, *halves, full_groups=(True, False), sink=2, recent=8)
    assert len(made) == 2
    for plan in made:
        splits = plan.walk.grid[1]
        assert plan.workspace == (2 * 6 * 20 * splits * (32 + 2) if splits > 1 else 0)


@pytest.mark.parametrize(
    ("dtype", "rows", "size", "tile"),
    [
        (torch.bfloat16, 128, 128, 128),
        (torch.bfloat16, 129, 128, 64),
        (torch.float16, 192, 96, 64),
        (torch.bfloat16, 193, 128, 128),
        (torch.bfloat16, 192, 129, 64),
        (torch.float32, 192, 128, 64),
    ],
)
def test_tiles_without_rows_of_padding(dtype: Any, rows: int, size: int, tile: int) -> None:
    """192 rows would fill one and a half tiles of 128."""
    assert blocks_of(dtype, torch.device("cpu"), rows, 8, 32_768, size).tile == tile


@pytest.mark.parametrize(
    ("card", "rows", "block"),
    [("NVIDIA H100 80GB HBM3", 60, 64), ("NVIDIA H200", 60, 128), ("NVIDIA H200", 65, 64), ("NVIDIA H200", 12, 128)],
)
def test_the_card_chooses_the_blocks(card: str, rows: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An H200 reads faster and computes as fast: 60 rows have more keys under way there."""
    monkeypatch.setattr(triton_blocks, "card", lambda device: card if device.type == "cuda" else "")
    assert blocks_of(torch.bfloat16, torch.device("cuda"), rows, 8, 32_768, 128).block == block


def test_heads_that_are_read_32_wide() -> None:
    """Tiles of 64 rows in four warps gave wrong values there (docs/decisions/0009-narrow-heads.md)."""
    doubtful = Blocks(64, 64, 4, 3, 1)
    half, single = torch.bfloat16, torch.float32
    assert trusted(half, doubtful, 32, 64) == trusted(half, doubtful, 128, 32) == Blocks(32, 64, 4, 3, 1)
    for dtype, blocks, widths in (
        (half, doubtful, (16, 64)),
        (half, doubtful._replace(warps=8), (32, 32)),
        (half, doubtful._replace(tile=32), (32, 32)),
        (single, doubtful, (32, 32)),
    ):
        assert trusted(dtype, blocks, *widths) == blocks


@pytest.mark.parametrize(("sizes", "tile"), [((24, 64), 32), ((64, 24), 32), ((64, 64), 64)])
def test_mixed_heads_that_are_read_32_wide(sizes: tuple[int, int], tile: int, plans) -> None:
    made = plans(4)
    shapes = (1, 12, 8, sizes[0]), (1, 2, 40, sizes[0]), (1, 2, 40, sizes[1])
    query, key, value = states(8, torch.float16, *shapes)
    arrays = query, key[:, :1], value[:, :1], key[:, 1:], value[:, 1:]
    options = {"full_groups": (True, False), "sink": 2, "recent": 30}
    found = triton_ops.mixed_attention(*arrays, **options)
    assert made[0].walk.options["TILE"] == tile
    assert agree(found, reference.mixed_attention(*map(to_numpy, arrays), **options), value)


@pytest.mark.parametrize(
    ("size", "value_size", "queries", "tile", "warps"),
    [(24, 16, 64, 32, 4), (24, 16, 128, 32, 4), (64, 24, 64, 32, 4), (64, 24, 128, 128, 8), (64, 64, 64, 64, 8)],
)
def test_scores_of_heads_that_are_read_32_wide(
    size: int, value_size: int, queries: int, tile: int, warps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, given = import_module("zigzag.backends.triton.head_scores"), []

    class Noted:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *arguments, **options: given.append((grid, options))

    monkeypatch.setattr(scores, "_compare", Noted())
    query, key, value = states(9, torch.float16, (1, 1, queries, size), (1, 1, 200, size), (1, 1, 200, value_size))
    triton_ops.output_deviation(query, key, value, sink=2, recent=8)
    ((grid, options),) = given
    assert (options["TILE"], options["num_warps"], grid[0]) == (tile, warps, queries // tile)


def test_trees_have_small_tiles() -> None:
    """Their pairs' addresses must fit the registers; blocks that are smaller stay."""
    assert of_trees(Blocks(64, 128, 8, 3, 2, least=1)) == Blocks(16, 64, 4, 2, 2, least=1)
    assert of_trees(Blocks(16, 32, 4, 2, 1)) == Blocks(16, 32, 4, 2, 1)
    query, key = (torch.zeros(1, heads, tokens, 64, dtype=torch.bfloat16) for heads, tokens in ((9, 17), (3, 600)))
    tree = triton_attention.plan_of(*map(layout, (query, key, key)), None, None, None, 17, None, None, 1, None)
    chain = triton_attention.plan_of(*map(layout, (query, key, key)), None, None, None, 0, None, None, 1, None)
    assert tree.walk.options["TILE"] == 16 < chain.walk.options["TILE"]
