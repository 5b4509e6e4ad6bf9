"""The suite `exclusive`: every method computes the same numbers from the same bytes, and what is wrong shows."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from zigzag.bench import attention, exclusive, timing  # noqa: E402
from zigzag.bench.cases import run_case  # noqa: E402

CPU = torch.device("cpu")
WAYS = ("layer-exclusive", "head-mixed, two calls", "head-mixed, one call")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "RUNS", 2)
    monkeypatch.setattr(timing, "COPY_BYTES", 1 << 20)
    monkeypatch.setattr(timing, "MATRIX", 256)
    timing.copy_rate.cache_clear()
    timing.matrix_rate.cache_clear()
    monkeypatch.setattr(attention, "GEOMETRIES", {"Llama-3-8B": (8, 4, 16)})
    monkeypatch.setattr(exclusive, "WINDOW", {"sink": 4, "recent": 12})
    monkeypatch.setattr(exclusive, "SMALL_CELLS", ((1, 64), (3, 40)))


def test_all_methods_are_right() -> None:
    for case in exclusive.exclusive(CPU):
        rows = {row.method: row for row in run_case(case, CPU)}
        assert rows.pop("FlashAttention 3, layer-exclusive").note == "its kernels are for Hopper cards"
        assert set(rows) == {*(f"torch, {way}" for way in WAYS), *(f"SDPA, {way}" for way in WAYS[:2])}
        assert all(row.eager is not None and row.error is not None and not row.note for row in rows.values()), rows


def test_equal_bytes_from_the_same_memory() -> None:
    case = next(exclusive.exclusive(CPU))
    inputs = case.inputs(0)
    layers = [case.methods[f"torch, {way}"].adapt(*inputs)[0] for way in WAYS[:2]]
    assert [len(each) for each in layers] == [4, 4]
    starts = zip(layers, (2, 1), strict=True)  # behind the kind and the query, or behind the query
    caches = [[states for layer in each for states in layer[start:]] for each, start in starts]
    sizes = [sum(states.numel() for states in each) for each in caches]
    assert sizes[0] == sizes[1] == 2 * 2 * 4 * (64 + 16) * 16  # full and streaming layers, keys and values
    assert case.bytes == 4 * (sizes[0] + 2 * 4 * 8 * 16)
    pools = {states.untyped_storage().data_ptr() for each in caches for states in each}
    assert len(pools) == 1
    first, second = case.inputs(0), case.inputs(1)
    assert not torch.equal(first[0], second[0]) and torch.equal(first[0], inputs[0])  # fresh queries
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(first[1:], second[1:], strict=True))


def test_a_layer_of_each_kind_by_hand() -> None:
    """Mixed layer 1 has the second half of the heads of full layer 0 and of streaming layer 0."""
    case = next(exclusive.exclusive(CPU))
    queries, keys, values, ring_keys, ring_values = inputs = case.inputs(0)
    query, full_key, full_value, key, value = case.methods["torch, head-mixed, one call"].adapt(*inputs)[0][1]
    assert torch.equal(query, torch.cat([queries[0, 0, :, 4:], queries[1, 0, :, 4:]], dim=1))
    assert torch.equal(full_key, keys[0, :, 2:]) and torch.equal(full_value, values[0, :, 2:])
    assert torch.equal(key, ring_keys[0, :, 2:]) and torch.equal(value, ring_values[0, :, 2:])
    assert full_key.data_ptr() == keys[0, :, 2:].data_ptr()  # a view


@pytest.mark.parametrize("way", WAYS)
def test_a_wrong_method_is_noticed(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that are swapped, and heads that are, in any of the three ways."""
    case = next(exclusive.exclusive(CPU))
    inputs, method = case.inputs(0), case.methods[f"torch, {way}"]
    truth = case.truth(*inputs)
    outputs = method.call(*method.adapt(*inputs))
    assert case.error(method.back(outputs), truth) <= case.tolerance
    assert case.error(method.back(outputs[::-1]), truth) > case.tolerance
    assert case.error(method.back(tuple(output.flip(1) for output in outputs)), truth) > case.tolerance
    outputs[0][0, 0] = torch.nan
    assert case.error(method.back(outputs), truth) == float("inf")


def test_what_does_not_fit_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exclusive, "_fits", lambda device, layers, batch, keys: batch == 1)
    first, second = exclusive.exclusive(CPU)
    assert {row.method for row in run_case(first, CPU) if row.note} == {"FlashAttention 3, layer-exclusive"}
    (row,) = run_case(second, CPU)
    assert "do not fit" in row.note and row.eager is None and row.labels["batch"] == 3


def test_the_real_shapes() -> None:
    """32 layers of 32/8/128 in bfloat16: what the largest cell holds, by hand."""
    attention.GEOMETRIES["Llama-3-8B"] = (32, 8, 128)
    exclusive.WINDOW.update(sink=128, recent=896)
    assert 2 * exclusive._elements(exclusive.LAYERS, 8, 131_072) == 16 * 8 * (131_072 + 1_024) * 8 * 128 * 2 * 2
    assert {(batch, keys) for batch in (1, 8) for keys in (8_192, 32_768, 131_072)} == set(exclusive.CELLS)
