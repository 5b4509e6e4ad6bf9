"""What the search for block sizes does around its measurements, which need a GPU."""

from importlib import import_module

import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("triton", reason="triton is not installed")

from zigzag.backends.triton import experts as triton_experts
from zigzag.bench import tuning
from zigzag.reference.errors import ArgumentError

triton_attention = import_module("zigzag.backends.triton.attention")  # the package has the op under this name


def rows(times: dict[str, tuple[float, float]]) -> list[dict]:
    """Of two shapes; a candidate is a name."""
    return [
        {"shape": {"keys": keys}, "blocks": {"name": name}, "graph": pair[keys]}
        for name, pair in times.items()
        for keys in (0, 1)
    ]


def test_best_is_nearest_to_every_shapes_best() -> None:
    found = tuning.best(rows({"first": (10.0, 8.0), "even": (11.0, 5.0), "second": (30.0, 4.0)}))
    assert [blocks["name"] for _, blocks in found] == ["even", "first", "second"]
    assert found[0][0] == pytest.approx((1.1 * 1.25) ** 0.5)


def test_a_candidate_that_failed_somewhere_is_none() -> None:
    found = tuning.best(rows({"whole": (10.0, 8.0), "half": (1.0, 1.0)})[:-1])
    assert [blocks["name"] for _, blocks in found] == ["whole"]


def test_text_names_the_best_of_each_shape() -> None:
    shapes = [tuning.Attention(1, 4, 2, 1, keys) for keys in (64, 128)]
    rows = [
        {"shape": vars(shape), "blocks": {"name": name}, "graph": time}
        for shape, times in zip(shapes, ((3.0, 2.0), (4.0, 9.0)), strict=True)
        for name, time in zip("ab", times, strict=True)
    ]
    assert tuning.text("few", shapes, rows) == (
        "few\n  1.225 ('a',)\n  1.500 ('b',)\n"
        "          2.0 µs (1, 4, 2, 1, 64, None, 128) ('b',)\n          4.0 µs (1, 4, 2, 1, 128, None, 128) ('a',)"
    )


def test_classes_by_parts_of_their_names() -> None:
    assert list(tuning.classes_of("sixty; down, several")) == [
        "one token, sixty-four sequences",
        "experts, down, several tokens",
    ]
    assert tuning.classes_of("") == tuning.CLASSES
    with pytest.raises(ArgumentError, match="no class has sixti in its name; there are: one token"):
        tuning.classes_of("sixti")


@pytest.mark.parametrize(("tokens", "place"), [(1, 0), (5, 1)])
@pytest.mark.parametrize("table", ["ACTIVATE", "COMBINE"])
def test_one_line_of_the_experts_tables_is_tried(table: str, tokens: int, place: int) -> None:
    before, tried = getattr(triton_experts, table), tuning.ONE[0]
    with tuning.Experts("GLM-4.5", tokens, table).using(tried):
        within = getattr(triton_experts, table)
    assert within[place] == tried and within[1 - place] == before[1 - place]
    assert getattr(triton_experts, table) == before


def test_blocks_are_tried_in_place_of_the_table() -> None:
    shape, tried = tuning.Attention(1, 4, 2, 1, 64), tuning.SMALL[0]
    with shape.using(tried):
        assert triton_attention.blocks_of("any", "arguments") == tried


def test_candidates_are_different() -> None:
    for name, (candidates, shapes) in tuning.CLASSES.items():
        assert len(set(candidates)) == len(candidates) and len(set(shapes)) == len(shapes), name
