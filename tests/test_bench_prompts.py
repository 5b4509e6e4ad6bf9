"""The suite `prompts`: every method gives a row, what fails or cannot fit says so, and tokens are compared."""

import gc
import json
import weakref
from collections.abc import Iterator
from dataclasses import asdict, replace
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from typer.testing import CliRunner  # noqa: E402

from zigzag.bench import batches, calls, prompts, report, step, timing  # noqa: E402
from zigzag.bench.calls import Ran  # noqa: E402
from zigzag.bench.cases import Row  # noqa: E402
from zigzag.bench.step import TINY, slice_of_air, step_bytes  # noqa: E402
from zigzag.cli.app import app  # noqa: E402
from zigzag.plans.layers import LayerPlan  # noqa: E402
from zigzag.reference.errors import OutOfMemoryError  # noqa: E402
from zigzag.running.attach import cache_bytes  # noqa: E402

CPU = torch.device("cpu")
GIB = 1 << 30
HALF = prompts.PLANS["half streaming"]
SHARED: dict[str, Any] = {"suite": "prompts", "labels": {"job": "prompt"}, "floor": 1.0}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    sizes = {timing: {"RUNS": 1, "WARM": 0, "COPY_BYTES": 1 << 20, "MATRIX": 256}}
    sizes |= {prompts: {"SMALL_TOKENS": (24, 16), "RUNS": 1}}
    sizes |= {batches: {"FEW_ROWS": (2,), "FEW_TOKENS": (16,), "NEW": 4, "RUNS": 1}}
    monkeypatch.setattr(calls, "gc", SimpleNamespace(collect=lambda: 0))  # it takes long beside a whole suite of tests
    for module, values in sizes.items():
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)
    for rate in (timing.copy_rate, timing.matrix_rate):
        rate.cache_clear()
    yield
    torch.set_num_threads(threads)
    for rate in (timing.copy_rate, timing.matrix_rate):
        rate.cache_clear()


@pytest.fixture(scope="module")
def model() -> Any:
    return slice_of_air(CPU, TINY)


def fake(tokens: list[list[int]], seconds: float = 1.0, cache: int | None = None) -> Any:
    return lambda model, rows, new: Ran(seconds, 2 * seconds, 5.0, tokens, cache)


def no_memory(*args: Any, **options: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nsecond line")


def seen_coming(*args: Any, **options: Any) -> Any:
    raise OutOfMemoryError("generate: 9 rows need 9 GiB beside the weights")


def test_every_method_gives_a_row() -> None:
    found = {tuple(later.labels.values()): later.measure() for later in prompts.prompts(CPU)}
    assert list(found)[:3] == [("prompt", 24, name) for name in ("full", "half streaming", "1 of 8 full")]
    assert list(found)[6:] == [
        ("batch", 2, 16, "full"), ("batch", 2, 16, "half streaming"),
        ("largest batch", 8_192, "full"), ("largest batch", 8_192, "half streaming"),
    ]  # fmt: skip
    peers = {"prompt": ["transformers generate"], "largest batch": []}
    caches = ["dynamic cache", "static cache", "continuous batching"]
    for labels, rows in found.items():
        others = peers.get(labels[0], [f"transformers, {way}" for way in caches]) if labels[-1] == "full" else []
        assert [row.method for row in rows] == [*others, "zigzag.generate"]
        for row in rows:
            assert tuple(row.labels.values()) == labels and row.suite == "prompts" and row.target is None
            if labels[0] == "largest batch":
                assert "CPU" in row.note and row.eager is None
                continue
            assert not row.note and row.floor > 0 and row.bytes is None, row
            assert row.error == (0.0 if others else None)  # in float32 every token is transformers'
            assert (row.eager == 1e6 * row.prompt) == (labels[0] == "prompt")
            assert (row.speed is None) == (labels[0] == "prompt") and (row.speed is None or row.speed > 0)
        remark = {"prompt": "the first 2 of 2", "batch": "the first 8 of 8"}.get(labels[0], "")
        assert not others or (remark in rows[-1].remark and remark not in rows[0].remark)


def test_all_ways_give_the_same_tokens(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = calls.random_prompts(model, 3, 12)
    assert rows == calls.random_prompts(model, 3, 12) and rows[0] != rows[1] and {len(row) for row in rows} == {12}
    ours, theirs = calls.of_zigzag(None)(model, rows, 5), calls.of_transformers()(model, rows, 5)
    monkeypatch.setattr(model.generation_config, "eos_token_id", ours.tokens[0][0])
    assert calls.of_zigzag(None)(model, rows, 5).tokens == ours.tokens  # nothing ends a row early
    assert ours.tokens == theirs.tokens == calls.continuous(model, rows, 5).tokens
    assert {len(row) for row in ours.tokens} == {5}
    assert 0 < ours.prompt < ours.total and 0 < theirs.prompt < theirs.total
    assert theirs.speed == pytest.approx(15 / (theirs.total - theirs.prompt))
    assert calls.of_zigzag(None)(model, rows[:1], 2).cache == cache_bytes_of(model, rows[0])
    assert ours.cache is None  # of several rows none is handed back


def cache_bytes_of(model: Any, row: list[int]) -> int:
    from zigzag.generation.generate import generate

    result = generate(model, [row], temperature=0.0, max_new_tokens=2, eos_token_id=[])
    assert result.cache is not None
    return cache_bytes(result.cache.cache)


def test_the_plan_is_run(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    whole = calls.generate
    monkeypatch.setattr(calls, "generate", lambda *args, **options: seen.append(options) or whole(*args, **options))
    calls.of_zigzag(HALF)(model, calls.random_prompts(model, 1, 8), 3)
    assert [(each["plan"], each["temperature"], each["max_new_tokens"]) for each in seen] == [(HALF, 0.0, 3)]
    kinds = [plan and (plan.num_full, plan.num_layers) for plan in prompts.PLANS.values()]
    assert kinds == [None, (4, 8), (1, 8)] and prompts.PLANS["1 of 8 full"].kinds[0] == "full"


def test_a_peer_without_memory_is_a_row(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite goes on, and what the peer held is given back, also where it held itself."""
    monkeypatch.setattr(calls, "gc", gc)
    left = []

    class Held:
        pass

    def generate(*args: Any, **options: Any) -> Any:
        held = Held()
        held.me = held  # a circle, as modules and hooks make them
        left.append(weakref.ref(held))
        no_memory()

    monkeypatch.setattr(model, "generate", generate)
    monkeypatch.setattr(model, "generate_batch", no_memory)
    for labels, wanted in (({"job": "prompt", "tokens": 16}, 2), ({"job": "batch", "rows": 2, "tokens": 16}, 4)):
        measure = prompts._prompt if wanted == 2 else batches._batch
        *peers, own = measure(model, None, labels | {"layers": "full"})
        assert len(peers) == wanted - 1
        assert {row.note for row in peers} == {"OutOfMemoryError: CUDA out of memory. Tried to allocate 9 GiB"}
        assert all(row.eager is None and row.prompt is None for row in peers)
        assert own.method == "zigzag.generate" and own.eager > 0 and own.error is None and not own.note
    assert len(left) == 3 and not any(ref() for ref in left)


def test_nothing_stays_for_the_next(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a call held, in circles too, is gone before the next call, before the next method, and at the end."""
    monkeypatch.setattr(calls, "gc", gc)
    left: list[Any] = []

    class Held:
        pass

    def call(model: Any, rows: Any, new: int) -> Ran:
        alive.append(any(ref() for ref in left))
        held = Held()
        held.me = held
        left.append(weakref.ref(held))
        return Ran(1.0, 2.0, 3.0, [[1]])

    alive: list[bool] = []
    calls.rows_of({"a": call, "b": call}, model, [[1, 2]], 1, SHARED, runs=2)
    assert alive == [False] * 6 and not any(ref() for ref in left)


def test_memory_is_given_back_on_a_gpu(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    monkeypatch.setattr(calls, "synchronize", lambda device: done.append("waited"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: done.append("emptied"))
    gpu = SimpleNamespace(device=SimpleNamespace(type="cuda"), _previous_max_cache_length=9)
    calls.give_back(gpu)
    assert done == ["waited", "emptied"] and not hasattr(gpu, "_previous_max_cache_length")
    calls.give_back(model)
    assert done == ["waited", "emptied", "waited"]
    monkeypatch.setattr(torch.compiler, "reset", lambda: done.append("compiled no more"))
    gpu._compiled_call = len
    calls.give_back(gpu)
    assert done[3:] == ["compiled no more", "waited", "emptied"] and not hasattr(gpu, "_compiled_call")


def test_a_static_cache_is_no_longer_than_its_rows(model: Any) -> None:
    """transformers keeps to the longest that it made; `give_back` forgets it."""
    static = calls.of_transformers(cache_implementation="static")
    static(model, calls.random_prompts(model, 1, 40), 2)
    assert model._previous_max_cache_length > 40
    calls.give_back(model)
    static(model, calls.random_prompts(model, 1, 8), 2)
    assert model._previous_max_cache_length < 20
    calls.give_back(model)


@pytest.mark.parametrize("kind", ["error", "missing", "raised"])
def test_continuous_batching_that_fails_is_a_row(kind: str, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fine = SimpleNamespace(error=None, timestamps=[1.0, 2.0], generated_tokens=[1, 2])
    failed = SimpleNamespace(error="CUDA out of memory", timestamps=None, generated_tokens=[])
    given = {"error": {"a": fine, "b": failed}, "missing": {"a": fine}}.get(kind)
    monkeypatch.setattr(model, "generate_batch", no_memory if given is None else lambda *args, **options: given)
    (row,) = calls.rows_of({"transformers": calls.continuous}, model, [[1], [2]], 2, SHARED, runs=1)
    said = {"error": "CUDA out of memory", "missing": "1 of 2 rows came back", "raised": "OutOfMemoryError"}[kind]
    assert said in row.note and row.eager is None


def test_continuous_batching_is_timed_by_its_tokens(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompts end with the last first token; only what came after it counts."""
    times = {"a": [101.0, 103.0, 104.0], "b": [102.0, 103.0, 106.0]}
    results = {name: SimpleNamespace(error=None, timestamps=t, generated_tokens=[1, 2, 3]) for name, t in times.items()}
    given: dict[str, Any] = {}
    monkeypatch.setattr(model, "generate_batch", lambda rows, **options: given.update(options) or results)
    monkeypatch.setattr(calls, "perf_counter", lambda: 100.0)
    ran = calls.continuous(model, [[1] * 300] * 2, 3)
    assert (ran.prompt, ran.total, ran.speed) == (2.0, 6.0, 4 / 4.0)
    config = given["continuous_batching_config"]
    assert config.num_blocks == 2 * 3 and not config.allow_block_sharing and not config.auto_switch_to_flash
    assert given["generation_config"].max_new_tokens == 3 and not given["generation_config"].do_sample


def test_the_first_logits_end_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((5.0, 7.0))
    monkeypatch.setattr(calls, "perf_counter", lambda: next(clock))
    waited: list[Any] = []
    monkeypatch.setattr(calls, "synchronize", waited.append)
    first, scores = calls.FirstLogits(), torch.ones(1, 3)
    assert first(torch.ones(1, 1), scores) is scores and first(torch.ones(1, 1), scores) is scores
    assert first.at == 5.0 and waited == [CPU]


def test_medians_and_what_does_not_count(model: Any) -> None:
    asked, seconds = [], iter((99.0, 3.0, 1.0, 2.0))

    def call(model: Any, rows: Any, new: int) -> Ran:
        asked.append(([len(row) for row in rows], new))
        now = next(seconds)
        return Ran(now, 10 * now, 100 * now, [[1]])

    ran, held = calls.measured(call, model, [[1] * 8, [2] * 8], 7, runs=3, warm=5)
    assert asked == [([5, 5], calls.WARM_NEW), *3 * [([8, 8], 7)]]
    assert (ran.prompt, ran.total, ran.speed, held) == (2.0, 20.0, 200.0, None)
    asked.clear()
    calls.measured(lambda model, rows, new: asked.append(len(rows[0])) or Ran(1, 2, 3, []), model, [[1] * 8], 7, runs=1)
    assert asked == [8, 8]


def test_the_peak_is_beyond_what_was_there(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "allocated", lambda device: 10 * GIB)
    monkeypatch.setattr(calls, "peak", lambda device: 13 * GIB)
    (row,) = calls.rows_of({"zigzag.generate": fake([[1]], cache=GIB)}, model, [[1]], 1, SHARED, runs=1)
    assert (row.bytes, row.cache) == (3 * GIB, GIB)
    line = dict(zip(report.COLUMNS, report.cells([row])[0], strict=True))
    assert [line[name] for name in ("peak, GiB", "cache, GiB", "rest, GiB")] == ["3.00", "1.00", "2.00"]
    assert (line["prompt, s"], line["new tokens/s"], line["target, s"]) == ("1.000", "5.0", "")
    line = dict(zip(report.COLUMNS, report.cells([replace(row, cache=None, target=0.64)])[0], strict=True))
    assert (line["rest, GiB"], line["cache, GiB"], line["target, s"]) == ("", "", "0.64")


def test_memory_is_asked_of_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    reset = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 7)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 9)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5, 80))
    gpu = SimpleNamespace(type="cuda")
    assert calls.allocated(gpu) == 7 and reset == [gpu] and calls.peak(gpu) == 9 and batches.room(gpu) == 5
    assert calls.allocated(CPU) is None and batches.room(CPU) is None and reset == [gpu]


def test_tokens_that_differ_are_told(model: Any) -> None:
    """In float32 that is a fault, in half precision a remark; who is no peer is no truth."""
    methods = {
        "transformers a": fake([[1, 2, 3, 4], [5, 6, 7, 8]]),
        "zigzag.generate": fake([[1, 2, 9, 4], [5, 6, 7, 8]]),
    }
    truth, ours = calls.rows_of(methods, model, [[1], [1]], 4, SHARED, runs=1)
    assert truth.error == 0.0 and not truth.note
    assert ours.error == 0.25 and ours.note == "wrong: 2 of 8 new tokens are not those of transformers a"
    assert ours.remark == "the first 6 of 8 new tokens, row by row, as transformers a"
    half = SimpleNamespace(dtype=torch.bfloat16, device=CPU)
    _, ours = calls.rows_of(methods, half, [[1], [1]], 4, SHARED, runs=1)
    assert ours.error == 0.25 and not ours.note and "first 6 of 8" in ours.remark
    short = calls.judged(Row(**SHARED, method="b"), [[1, 2], [5]], "a", [[1, 2, 3], [5, 6, 7]], exact=True)
    assert short.error == 0.5 and short.note
    (alone,) = calls.rows_of({"zigzag.generate": fake([[1]])}, model, [[1]], 1, SHARED, runs=1)
    assert alone.error is None and not alone.remark
    both = {"transformers a": fake([[1]]), "transformers b": fake([[2]]), "zigzag.generate": fake([[1]])}
    first, other, ours = calls.rows_of(both, model, [[1]], 1, SHARED, runs=1)
    assert (first.error, other.error, ours.error) == (0.0, 1.0, 0.0)  # the first that gave tokens is the truth
    second = {"transformers a": no_memory, "transformers b": fake([[1]]), "zigzag.generate": fake([[2]])}
    assert "transformers b" in calls.rows_of(second, model, [[1]], 1, SHARED, runs=1)[2].note


def test_operations_by_hand(model: Any) -> None:
    """Three tokens of the tiny slice: 2 for each weight that a token uses, and 4 a number of each pair that is seen."""
    hidden, heads, groups, size = 64, 8, 2, 16
    attention = (
        2 * hidden * heads * size + 2 * hidden * groups * size + (heads + 2 * groups) * size
    )  # biases of q, k, v
    dense, expert = 3 * hidden * 96, 3 * hidden * 32
    experts = 3 * expert + 8 * hidden + 8  # two that are chosen, one that is shared; the router and its biases
    norms = 17 * hidden
    weights = 8 * attention + dense + 7 * experts + norms
    head = 512 * hidden
    for plan, pairs in ((None, 8 * 6), (LayerPlan(("full", "streaming") * 4, 1, 1), 4 * 6 + 4 * 5)):
        wanted = 2 * 3 * weights + 2 * head + 4 * heads * size * pairs
        assert calls.prompt_operations(model, plan, 3) == wanted
        assert calls.prompt_operations(model, plan, 3, rows=5) == 5 * wanted


def test_bytes_of_a_step_of_several_rows(model: Any) -> None:
    """The cache of each row, and no weight twice."""
    one, four = (step_bytes(model, 1_000, None, 1, rows) for rows in (1, 4))
    caches = 4 * 2 * 8 * 2 * 16 * 1_000
    assert one - caches == step_bytes(model, 0, None, 1) and four - 4 * caches == step_bytes(model, 0, None, 4)


def test_floor_of_a_batch(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompts' operations, then a step for each new token that reads weights and all caches once."""
    monkeypatch.setattr(batches, "copy_rate", lambda device: 10.0)
    monkeypatch.setattr(batches, "matrix_rate", lambda device: 100.0)
    seconds = calls.prompt_operations(model, HALF, 40, 3) / 100 + 4 * step_bytes(model, 40, HALF, 1, 3) / 10
    assert batches._floor(model, HALF, 3, 40) == pytest.approx(1e6 * seconds)


def test_what_cannot_fit_is_not_tried(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the bytes of all rows' keys and values and of a piece; exactly so many are enough."""
    each = 2 * 2 * 16 * 4  # a key and a value of 2 heads, of 16 numbers of 4 bytes
    needed = 2 * each * 8 * (16 + 4 + 64)
    piece = batches.bound_of(CPU)
    monkeypatch.setattr(batches, "rows_of", lambda *args, **options: ["tried"])
    labels = {"job": "batch", "rows": 2, "tokens": 16, "layers": "full"}
    monkeypatch.setattr(batches, "room", lambda device: needed + piece)
    assert batches._batch(model, None, labels) == ["tried"]
    monkeypatch.setattr(batches, "room", lambda device: needed + piece - 1)
    (row,) = batches._batch(model, None, labels)
    assert (row.method, row.labels, row.eager) == ("all", labels, None)
    free = needed + piece - 1
    assert row.note == (
        f"not tried: {needed:,} bytes for the cache and {piece:,} for a piece are needed, {free:,} are free"
    )
    window = 128 + 896 + 64
    assert batches.cache_size(model, HALF, 3, 5_000) == 3 * each * 4 * (5_000 + 64 + window)


def test_large_batches_are_timed_once(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(batches, "rows_of", lambda m, model, rows, new, shared, **how: asked.append((new, how)) or [])
    monkeypatch.setattr(batches, "RUNS", 3)
    for limit in (32, 31):
        monkeypatch.setattr(batches, "SMALL", limit)
        batches._batch(model, HALF, {"job": "batch", "rows": 2, "tokens": 16, "layers": "half streaming"})
    assert asked == [(4, {"runs": 3, "warm": None}), (4, {"runs": 1, "warm": batches.WARM})]


def test_the_real_cells_and_peers() -> None:
    gpu = SimpleNamespace(device=SimpleNamespace(type="cuda"))
    cells = [tuple(later.labels.values()) for later in batches.batches(gpu, {"full": None, "half streaming": HALF})]
    wanted = {(rows, tokens) for rows in (1, 8, 32, 64) for tokens in (2_048, 8_192, 32_768)}
    assert {cell[1:3] for cell in cells} == wanted and len(cells) == 24
    compiled, mixed = "transformers, static cache, compiled", "transformers, continuous batching"
    assert [cell for cell in wanted if compiled in batches.peers_of(gpu, *cell)] == [(8, 8_192)]
    for rows, tokens in wanted:
        peer = batches.peers_of(gpu, rows, tokens)[mixed]
        assert isinstance(peer, str) == (rows * tokens > 65_536)
    assert batches.SMALL == 65_536 and prompts.TOKENS == (131_072, 32_768)
    assert set(prompts.TARGETS) == {(tokens, name) for tokens in prompts.TOKENS for name in prompts.PLANS}


def test_one_static_cache_is_compiled(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, tuple[Any, Any]] = {}
    for name, call in batches.peers_of(model, *batches.COMPILED).items():
        options: dict[str, Any] = {}
        given = lambda *args, options=options, **others: options.update(others) or no_memory()  # noqa: E731
        monkeypatch.setattr(model, "generate", given)
        if "continuous" not in name:
            with pytest.raises(torch.OutOfMemoryError):
                call(model, [[1, 2]], 2)
            asked[name.partition(", ")[2]] = options.get("cache_implementation"), options.get("disable_compile")
    assert asked == {
        "dynamic cache": (None, None),
        "static cache": ("static", True),
        "static cache, compiled": ("static", None),
    }


def test_a_peer_that_is_not_tried_is_a_row(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "SMALL", 31)
    labels = {"job": "batch", "rows": 2, "tokens": 16, "layers": "full"}
    rows = {row.method: row for row in batches._batch(model, None, labels)}
    assert len(rows) == 4 and rows["transformers, continuous batching"].note.startswith("not tried beyond 31 tokens")
    assert not rows["zigzag.generate"].note


def test_targets_are_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    monkeypatch.setattr(prompts, "rows_of", lambda methods, model, rows, new, shared, **how: given.append(shared) or [])
    for name, result in {"prompt_operations": 6, "matrix_rate": 3.0, "random_prompts": []}.items():
        monkeypatch.setattr(prompts, name, lambda *args, result=result: result)
    for kind in ("cuda", "cpu"):
        place = SimpleNamespace(device=SimpleNamespace(type=kind))
        prompts._prompt(place, HALF, {"job": "prompt", "tokens": 131_072, "layers": "half streaming"})
    assert [shared["target"] for shared in given] == [4.2, None] and given[0]["floor"] == 2e6


@pytest.mark.parametrize(
    ("computed", "limit", "found", "tries"),
    [
        (32, 33, (32, 36), [32, 36]),
        (32, inf, (36, 0), [32, 36]),
        (32, 28, (28, 30), [32, 30, 28]),
        (32, 0, (0, 2), [*range(32, 0, -2)]),
        (3, 3, (3, 4), [3, 4]),
        (0, 9, (0, 0), []),
    ],
)  # fmt: skip
def test_search(computed: int, limit: float, found: tuple[int, int], tries: list[int]) -> None:
    tried: list[int] = []

    def fits(rows: int) -> bool:
        tried.append(rows)
        return rows <= limit

    assert batches.search(computed, fits) == found and tried == tries


def test_the_largest_batch(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """From what is free beyond a piece; a failure that is not for memory, and a card too small, are rows."""
    monkeypatch.setattr(batches, "LARGEST_TOKENS", 16)
    each, piece = batches.cache_size(model, HALF, 1, 18), batches.bound_of(CPU)
    monkeypatch.setattr(batches, "room", lambda device: piece + 8 * each + each // 2)
    asked: list[tuple[int, int]] = []
    (later,) = batches.largest_batches(model, {"half streaming": HALF})

    def runs(most: int, failure: Any = no_memory) -> Any:
        def call(model: Any, rows: Any, new: int) -> Ran:
            asked.append((len(rows[0]), new))
            return failure() if len(rows) > most else Ran(float(len(rows)), 2.0, 1.0, rows)

        return lambda plan: call

    monkeypatch.setattr(batches, "of_zigzag", runs(8))
    (row,) = later.measure()
    assert row.remark == "8 rows computed, 8 fit, 9 do not" and row.prompt == 8.0 and not row.note
    assert row.floor == 1e6 * calls.prompt_operations(model, HALF, 16, 8) / timing.matrix_rate(CPU)
    assert row.eager == 2e6 and set(asked) == {(16, 2)}
    monkeypatch.setattr(batches, "of_zigzag", runs(5))
    assert later.measure()[0].remark == "8 rows computed, 5 fit, 6 do not"
    monkeypatch.setattr(batches, "of_zigzag", runs(6, seen_coming))
    assert later.measure()[0].remark == "8 rows computed, 6 fit, 7 do not"
    monkeypatch.setattr(batches, "of_zigzag", runs(99))
    assert later.measure()[0].remark == "8 rows computed, 9 fit"
    monkeypatch.setattr(batches, "of_zigzag", runs(0))
    assert later.measure()[0].note == "8 rows computed, 0 fit, 1 do not"
    monkeypatch.setattr(batches, "of_zigzag", runs(5, lambda: 1 // 0))
    assert later.measure()[0].note.startswith("ZeroDivisionError")
    monkeypatch.setattr(batches, "room", lambda device: piece - 1)
    assert later.measure()[0].note == "0 rows computed, 0 fit"


def test_rows_from_before_are_read_and_columns_show_where_used() -> None:
    facts = report.conditions(CPU, "zigzag bench prompts")
    old = Row("step", "m", {"context": 7}, 1.0, eager=2.0)
    kept = {
        name: value
        for name, value in asdict(old).items()
        if name not in ("prompt", "speed", "target", "bytes", "cache")
    }
    content = json.loads(json.dumps(report.as_json(facts, [])))
    assert report.rows_to_keep(content | {"rows": [kept]}, facts) == [old]
    new = replace(old, suite="prompts", prompt=0.5, bytes=GIB)
    assert report.rows_to_keep(json.loads(json.dumps(report.as_json(facts, [new]))), facts) == [new]
    heads = [line for line in report.page(facts, [old, new]).splitlines() if line.startswith("| shape")]
    assert [("prompt, s" in head, "peak, GiB" in head, "cache, GiB" in head) for head in heads] == [
        (False, False, False), (True, True, False),
    ]  # fmt: skip
    behind = replace(old, prompt=0.5)
    for rows, said in (([old], set()), ([new], {report.WHOLE_CALLS}), ([behind], {report.BEHIND_A_PROMPT})):
        page = report.page(facts, rows)
        assert {text for text in (report.WHOLE_CALLS, report.BEHIND_A_PROMPT) if text in page} == said


def test_a_step_says_how_long_a_prompt_before_it_takes(model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two calls, of all tokens, under the plan; the same for a plan's rows, and none of transformers'."""
    asked: list[tuple] = []

    def generate(model, prompts, **options):
        asked.append((prompts, options["plan"], options["max_new_tokens"]))
        return SimpleNamespace(statistics=SimpleNamespace(seconds_prefill=10.0 + len(asked)))

    monkeypatch.setattr(step, "generate", generate)
    plan = LayerPlan(("full", "streaming") * 4, 4, 12)
    cache = step.RandomCache(model, 40, CPU)
    labels = {"context": 40, "layers": "x", "tokens": 1}
    for given in (None, plan):
        prompt, before = step.RealPrompt(model, cache.ids, given), len(asked)
        rows = [row for _ in range(2) for row in step._one_step(model, cache, prompt, labels)]
        assert {row.prompt for row in rows if row.method.startswith("zigzag")} == {12.0 + before}
        assert {row.prompt for row in rows if row.method == "transformers"} <= {None}
        assert asked[before:] == 2 * [([cache.ids], given, 1)]


def test_command(tmp_path: Path) -> None:
    """`--only` picks the job, and `--resume` measures what is lacking."""
    out = tmp_path / "prompts.json"
    call = ["bench", "prompts", "--out", str(out), "--resume", "--only"]
    for only in ("prompt, tokens 16, full", "batch, rows 2, tokens 16, half", "prompt, tokens 16, full"):
        result = CliRunner().invoke(app, [*call, only])
        assert result.exit_code == 0, result.output
    rows = json.loads(out.read_text())["rows"]
    assert [(row["labels"]["job"], row["method"]) for row in rows] == [
        ("prompt", "transformers generate"), ("prompt", "zigzag.generate"), ("batch", "zigzag.generate"),
    ]  # fmt: skip
    assert all(row["prompt"] > 0 and row["bytes"] is None for row in rows)
    assert "| prompt, s |" in out.with_suffix(".md").read_text()
