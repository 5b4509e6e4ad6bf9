"""What a call needs, by hand; what is said where it does not fit; what is left after memory ran out."""

import random

import pytest
import torch
from models import tiny_glm4_moe, tiny_llama
from test_runner import draw

import zigzag
from zigzag import HeadPlan, LayerPlan, OutOfMemoryError
from zigzag.caches.fixed import FixedLayer
from zigzag.running import memory, pieces
from zigzag.running.fixed import FixedStore
from zigzag.running.host import Host
from zigzag.running.memory import check_fits, need_of
from zigzag.running.pieces import token_bytes
from zigzag.running.runner import Runner

HALF = LayerPlan(("full", "streaming", "full", "streaming"), 4, 12)
GROUPS, SIZE = 2, 8  # KV heads and head size of the tiny models


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    """Of a model that says that it is on a GPU; 64 tokens are a piece."""
    made = Host(tiny_llama(4, dtype=torch.float64), prefill_chunk_size=64)
    made.device = torch.device("cuda")
    monkeypatch.setattr(pieces, "bound_of", lambda device: pieces.BOUND)
    return made


def free(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: count)


def test_bytes_by_hand(host: Host) -> None:
    assert (host.layers.num_kv_heads, host.layers.head_size) == (GROUPS, SIZE)
    slot = 2 * SIZE * 8  # a key and a value of one head in float64
    full = need_of(host, None, 3, 100, prompt=100, spare=5, keep_hidden=False)
    assert full.row == 4 * 100 * GROUPS * slot and full.rows == 3 and full.states == 0
    assert full.total == 3 * full.row + 64 * token_bytes(host.config, 8)
    assert (
        need_of(host, HALF, 3, 100, prompt=100, spare=5, keep_hidden=False).row
        == (2 * 100 + 2 * (4 + 12 + 5)) * GROUPS * slot
    )
    assert need_of(host, HALF, 3, 10, prompt=10, spare=5, keep_hidden=False).row == 4 * 10 * GROUPS * slot
    heads = HeadPlan(((True, False), (False, False), (True, True), (True, True)), 4, 12)
    assert need_of(host, heads, 1, 100, prompt=100, spare=5, keep_hidden=False).row == (5 * 100 + 3 * 21) * slot
    assert (
        need_of(host, None, 3, 100, prompt=100, spare=0, keep_hidden=True).states
        == 3 * 100 * host.config.hidden_size * 8
    )
    assert need_of(host, None, 1, 10, prompt=10, spare=0, keep_hidden=False).piece == 10, (
        "no piece is larger than the prompts"
    )


def test_what_fits_is_let_through(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    need = need_of(host, HALF, 3, 100, prompt=100, spare=5, keep_hidden=False).total
    free(monkeypatch, need)
    check_fits(host, HALF, 3, 100, prompt=100, spare=5, keep_hidden=False)
    free(monkeypatch, need - 1)
    with pytest.raises(OutOfMemoryError, match="GiB"):
        check_fits(host, HALF, 3, 100, prompt=100, spare=5, keep_hidden=False)
    host.device = torch.device("cpu")
    check_fits(host, HALF, 3, 100, prompt=100, spare=5, keep_hidden=False)


def said(host: Host, plan, rows: int, tokens: int) -> str:
    with pytest.raises(OutOfMemoryError) as error:
        check_fits(host, plan, rows, tokens, prompt=tokens, spare=5, keep_hidden=False)
    return str(error.value)


def test_a_smaller_piece_is_named_first_and_fits(monkeypatch: pytest.MonkeyPatch, host: Host) -> None:
    host.prefill_chunk_size = 1000
    need = need_of(host, None, 3, 5000, prompt=5000, spare=5, keep_hidden=False)
    free(monkeypatch, need.total - 1)
    assert "prefill_chunk_size=512 would fit" in said(host, None, 3, 5000)
    host.prefill_chunk_size = 512
    check_fits(host, None, 3, 5000, prompt=5000, spare=5, keep_hidden=False)


def test_then_a_plan_that_fits(monkeypatch: pytest.MonkeyPatch, host: Host) -> None:
    plan = LayerPlan(("full",) * 2 + ("streaming",) * 2, 128, 896)
    free(monkeypatch, need_of(host, plan, 3, 50_000, prompt=50_000, spare=5, keep_hidden=False).total)
    assert "at most 2 of 4 layers full (sink 128 and recent 896) would fit" in said(host, None, 3, 50_000)
    check_fits(host, plan, 3, 50_000, prompt=50_000, spare=5, keep_hidden=False)


def test_then_fewer_rows(monkeypatch: pytest.MonkeyPatch, host: Host) -> None:
    plan = LayerPlan(("streaming",) * 4, 128, 896)
    need = need_of(host, plan, 5, 2000, prompt=2000, spare=5, keep_hidden=False)
    free(monkeypatch, 3 * need.row + 64 * need.token)
    assert "at most 3 rows at once would fit" in said(host, plan, 5, 2000)
    check_fits(host, plan, 3, 2000, prompt=2000, spare=5, keep_hidden=False)
    free(monkeypatch, 10)
    assert "a smaller model" in said(host, plan, 5, 2000)


def test_generate_refuses_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refused(*args, **options) -> None:
        asked.append((args[2:], options))
        raise OutOfMemoryError("too much")

    monkeypatch.setattr("zigzag.generation.loop.check_fits", refused)
    model = tiny_glm4_moe(2)
    before = dict(vars(model.model))
    with pytest.raises(OutOfMemoryError, match="too much"):
        zigzag.generate(model, [[1, 2, 3], [4]], max_new_tokens=7, spare=9)
    assert asked == [((2, 3 + 7 + 9), {"spare": 9, "keep_hidden": False, "prompt": 3})]
    assert dict(vars(model.model)).keys() == before.keys() and isinstance(OutOfMemoryError("x"), MemoryError)


def test_what_a_given_cache_has_is_not_needed_again(monkeypatch: pytest.MonkeyPatch, host: Host) -> None:
    """Neither its bytes, nor a piece as large as if its tokens were new; what it has beyond gives nothing back."""
    how = {"spare": 5, "keep_hidden": False}
    row = need_of(host, None, 1, 100, prompt=95, **how).row
    need = need_of(host, None, 1, 100, prompt=10, held=row - 1000, **how)
    assert need.total == 1000 + 10 * token_bytes(host.config, 8)
    assert need_of(host, None, 1, 100, prompt=0, held=2 * row, **how).total == token_bytes(host.config, 8)
    free(monkeypatch, need.total)
    check_fits(host, None, 1, 100, prompt=10, held=row - 1000, **how)
    free(monkeypatch, need.total - 1)
    with pytest.raises(
        OutOfMemoryError, match=r"of which a given cache has .* go on with fewer tokens, or give no cache"
    ):
        check_fits(host, None, 1, 100, prompt=10, held=row - 1000, **how)
    host.prefill_chunk_size = 1000
    free(monkeypatch, need_of(host, None, 1, 5000, prompt=4000, held=1, **how).total - 1)
    with pytest.raises(OutOfMemoryError, match="prefill_chunk_size=512 would fit"):
        check_fits(host, None, 1, 5000, prompt=4000, held=1, **how)


def test_generate_asks_before_a_given_cache_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """How much of the prompt is not in it counts, not how much it holds; and it stays as it was."""
    model = tiny_glm4_moe(2)
    cache = zigzag.generate(model, [[1, 2, 3]], max_new_tokens=4, temperature=0, eos_token_id=[]).cache
    before, asked = [list(row) for row in cache.tokens], []

    def refused(*args, **options) -> None:
        asked.append((args[2:], options))
        raise OutOfMemoryError("too much")

    monkeypatch.setattr("zigzag.generation.loop.check_fits", refused)
    for prompt, missing in (([1, 2, 3], 0), ([*before[0], 5, 6], 2), ([1, 2, 4, 4, 4], 3), ([4, 4], 2)):
        with pytest.raises(OutOfMemoryError, match="too much"):
            zigzag.generate(model, [prompt], max_new_tokens=50, spare=9, cache=cache)
        rest = {"spare": 9, "keep_hidden": False, "prompt": missing, "held": zigzag.cache_bytes(cache.cache)}
        assert asked.pop() == ((1, len(prompt) + 50 + 9), rest) and rest["held"] > 0
        assert cache.tokens == before


@pytest.mark.parametrize("most", [None, 500])
def test_a_given_cache_moves_once(most: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fixed one, on a CPU as on a GPU, with room for later if there is memory; what it held is still there.

    most: tokens that a layer has memory for, where not the first one asks
    """
    model, prompt, how = tiny_llama(4, dtype=torch.float64), draw(random.Random(7), 40), {"temperature": 0, "spare": 5}
    grow, asked = FixedLayer.grow, []

    def limited(layer: FixedLayer, size: int) -> None:
        asked.append(size)
        if most is not None and len(asked) > 1 and size > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        grow(layer, size)

    monkeypatch.setattr(FixedLayer, "grow", limited)
    with torch.inference_mode():
        with Host(model) as host:
            runner = Runner(host, FixedStore(None, host.layers, host.device, capacity=48, graphs=False))
            runner.fill([prompt])
        result = zigzag.generate(model, [prompt], cache=runner, max_new_tokens=400, eos_token_id=[], **how)
    needed = 40 + 400 + 5
    later = needed + max(256, needed // 4)
    assert asked == (4 * [later] if most is None else [later, later, *3 * [needed]])
    assert runner.store.capacity == (later if most is None else needed)
    assert result.new_tokens == zigzag.generate(model, [prompt], max_new_tokens=400, eos_token_id=[], **how).new_tokens


@pytest.mark.parametrize("graphs", [None, False])
def test_memory_that_runs_out_in_a_prompt(graphs: bool | None) -> None:
    """The cache is as it was, and the error says what helps."""
    model = tiny_llama(4, dtype=torch.float64)
    first = zigzag.generate(model, [[*range(1, 60)]], plan=HALF, temperature=0, max_new_tokens=3)
    longer = [first.sequences[0] + [*range(1, 50)]]
    wanted = zigzag.generate(model, longer, plan=HALF, temperature=0, max_new_tokens=9).sequences
    calls = []

    def short(*_) -> None:
        calls.append(0)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("none left")

    hook = model.model.layers[2].register_forward_hook(short)
    with pytest.raises(torch.OutOfMemoryError) as error:
        zigzag.generate(
            model, longer, plan=HALF, temperature=0, max_new_tokens=9, cache=first.cache, prefill_chunk_size=8
        )
    hook.remove()
    assert "prefill_chunk_size" in error.value.__notes__[0]
    assert first.cache.tokens == [first.sequences[0][:-1]]
    again = zigzag.generate(model, longer, plan=HALF, temperature=0, max_new_tokens=9, cache=first.cache)
    assert again.sequences == wanted


@pytest.mark.parametrize("kind", ["fixed", "growing"])
def test_a_cache_is_as_before_an_error(kind: str) -> None:
    """Longer than its rings, with tokens taken back before: what both texts share is left, and is right."""
    import random

    from test_runner import assert_right, growing

    model, rng = tiny_llama(4, dtype=torch.float64), random.Random(0)
    text = draw(rng, 60)
    with Host(model, prefill_chunk_size=7) as host, torch.inference_mode():
        if kind == "fixed":
            runner = Runner(host, FixedStore(HALF, host.layers, host.device, spare=9, capacity=16, graphs=False))
        else:
            runner = growing(host, HALF, spare=9)
        runner.fill([text])
        with pytest.raises(KeyboardInterrupt), runner.as_before_on_error():
            runner.fill([[*text, *draw(rng, 40)]])
            raise KeyboardInterrupt
        assert runner.tokens == [text]
        logits = [runner.sync([[*text, 3]]).logits[:, 0]]
        runner.take_back([1])
        with pytest.raises(KeyboardInterrupt), runner.as_before_on_error():
            runner.fill([[*text[:-4], *draw(rng, 40)]])
            raise KeyboardInterrupt
        assert runner.tokens == [text[:-4]]
        logits.append(runner.sync([[*text, 3]]).logits[:, 0])
    for row in logits:
        assert_right(model, HALF, [[*text, 3]], row)


def test_a_cache_that_cannot_be_restored_is_void() -> None:
    model = tiny_llama(2)
    with Host(model) as host, torch.inference_mode():
        runner = Runner(host, FixedStore(None, host.layers, host.device, graphs=False))
        runner.fill([[1, 2, 3]])

        def broken(saved) -> None:
            raise RuntimeError("of the device")

        runner.store.restore = broken
        with pytest.raises(KeyboardInterrupt), runner.as_before_on_error():
            raise KeyboardInterrupt
        with pytest.raises(zigzag.CacheError, match="broke off"):
            runner.fill([[1, 2, 3, 4]])


@pytest.mark.parametrize("kind", ["fixed", "growing"])
def test_rows_that_left_do_not_come_back(kind: str) -> None:
    """Nor do others stand for them."""
    from test_runner import growing

    model = tiny_llama(4, dtype=torch.float64)
    with Host(model) as host, torch.inference_mode():
        if kind == "fixed":
            runner = Runner(host, FixedStore(HALF, host.layers, host.device, graphs=False))
        else:
            runner = growing(host, HALF)
        runner.fill([[1, 2, 3], [4, 5]])
        with pytest.raises(KeyboardInterrupt), runner.as_before_on_error():
            runner.select([1])
            raise KeyboardInterrupt
        with pytest.raises(zigzag.CacheError, match="broke off"):
            runner.sync([[1, 2, 3], [4, 5]])


@pytest.mark.parametrize("kind", ["fixed", "growing"])
@pytest.mark.parametrize("rows", [0, 1])
def test_an_empty_cache_is_empty_again(kind: str, rows: int) -> None:
    from test_runner import assert_right, growing

    model, text = tiny_llama(4, dtype=torch.float64), [*range(1, 50)]
    with Host(model) as host, torch.inference_mode():
        if kind == "fixed":
            runner = Runner(host, FixedStore(HALF, host.layers, host.device, graphs=False))
        else:
            runner = growing(host, HALF)
        if rows:
            runner.fill([[]])
        with pytest.raises(KeyboardInterrupt), runner.as_before_on_error():
            runner.fill([[7] * 40])
            raise KeyboardInterrupt
        assert runner.tokens == [[]] * rows
        logits = runner.sync([text]).logits[:, 0]
    assert_right(model, HALF, [text], logits)


def test_buffers_that_cannot_grow_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two full layers has no room, nor for less: the first is only larger, and the runner goes on."""
    from test_runner import assert_right

    model, text = tiny_llama(2, dtype=torch.float64), draw(random.Random(1), 30)
    grow, calls = FixedLayer.grow, []

    def short(self, size: int) -> None:
        calls.append(size)
        if len(calls) in (2, 3):
            raise torch.OutOfMemoryError("none left")
        grow(self, size)

    with Host(model) as host, torch.inference_mode():
        runner = Runner(host, FixedStore(None, host.layers, host.device, capacity=8, graphs=False))
        runner.fill([text[:7]])
        monkeypatch.setattr(FixedLayer, "grow", short)
        with pytest.raises(torch.OutOfMemoryError), runner.as_before_on_error():
            runner.fill([text])
        assert runner.tokens == [text[:7]]
        logits = runner.sync([text]).logits[:, 0]
    assert_right(model, None, [text], logits)
