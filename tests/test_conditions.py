"""What must hold between model, plan, drafter and cache is checked before any work: afterwards all is as it was."""

from typing import Any

import numpy as np
import pytest
import torch
from models import random_ids, tiny_glm4_moe, tiny_llama
from windowed_models import WINDOWED

import zigzag
from zigzag import ArgumentError, CacheError, HeadPlan, HeadScores, LayerPlan, ModelError, generate
from zigzag.generation.drafting import LookupDrafter, ModelDrafter
from zigzag.running import pieces
from zigzag.running.fixed import FixedStore
from zigzag.running.host import Host
from zigzag.running.runner import Runner

PLAN = LayerPlan(("streaming", "full", "streaming"), sink=2, recent=6)
IDS = random_ids(1, 20)
ORIGINAL = 24  # tokens, from where on the rotary embeddings below change
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0, "original_max_position_embeddings": ORIGINAL}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [1.0, 2.0, 3.0, 4.0],
    "factor": 4.0,
    "original_max_position_embeddings": ORIGINAL,
}


def rotating(rope: dict[str, Any]) -> Any:
    return tiny_llama(3, rope_parameters=dict(rope), max_position_embeddings=ORIGINAL)


def transformers_tokens(model: Any, text: list[int], count: int) -> list[int]:
    return model.generate(torch.tensor([text]), max_new_tokens=count, do_sample=False)[0].tolist()


# Rotary embeddings that depend on the length


@pytest.mark.parametrize("drafter", [None, "lookup", "streaming"])
@pytest.mark.parametrize(
    ("rope", "lengths", "count"),
    [(DYNAMIC, (5, 12), 8), (LONGROPE, (5, 12), 8), (LONGROPE, (26, 30), 8), (LONGROPE, (26,), 30)],
    ids=["dynamic, short", "longrope, short", "longrope, long", "longrope, longer"],
)
def test_on_one_side_of_the_switch(
    rope: dict[str, Any], lengths: tuple[int, ...], count: int, drafter: str | None
) -> None:
    """transformers' own tokens, each row as if alone."""
    texts = [random_ids(1, n, seed=n)[0].tolist() for n in lengths]
    result = generate(rotating(rope), texts, drafter=drafter, temperature=0, max_new_tokens=count)
    assert result.sequences == [transformers_tokens(rotating(rope), text, count) for text in texts]


@pytest.mark.parametrize(("lengths", "drafter"), [((31,), None), ((40, 28), None), ((31,), "streaming")])
def test_a_long_prompt_in_pieces_rotates_as_a_whole(
    lengths: tuple[int, ...], drafter: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """longrope: the first piece must pass the switch."""
    monkeypatch.setattr(pieces, "LARGEST", 4)
    texts = [random_ids(1, n, seed=n)[0].tolist() for n in lengths]
    shapes, model = [], rotating(LONGROPE)
    model.model.register_forward_hook(lambda *given: shapes.append(tuple(given[2].last_hidden_state.shape[:2])))
    result = generate(model, texts, drafter=drafter, temperature=0, max_new_tokens=5)
    assert result.sequences == [transformers_tokens(rotating(LONGROPE), text, 5) for text in texts]
    assert shapes[0] == (len(texts), ORIGINAL + 1) and len(shapes) > 6
    with pytest.raises(ModelError, match=rf"first {ORIGINAL + 1} tokens.*prefill_chunk_size is 8.*give {ORIGINAL + 1}"):
        generate(model, texts, temperature=0, max_new_tokens=5, prefill_chunk_size=8)
    cached = generate(model, texts[:1], temperature=0, max_new_tokens=2)
    more = generate(model, cached.sequences, temperature=0, max_new_tokens=3, prefill_chunk_size=8, cache=cached.cache)
    assert more.sequences == result.sequences[:1]
    shapes.clear()
    generate(model, [texts[0] * 2], temperature=0, max_new_tokens=2, prefill_chunk_size=8, cache=cached.cache)
    assert max(width for _, width in shapes) == 8, "what the cache holds has passed the switch"


@pytest.mark.parametrize(
    ("rope", "lengths", "count", "drafter"),
    [
        (DYNAMIC, (20,), 5, None),  # the last token stands at place 25
        (DYNAMIC, (30,), 5, None),
        (DYNAMIC, (18,), 4, "lookup"),  # up to 22 tokens, and 4 drafts
        (LONGROPE, (20,), 5, None),
        (LONGROPE, (25,), 5, None),  # the prompt without its last token is on the other side
        (LONGROPE, (30, 8), 3, None),
    ],
)
def test_across_the_switch_is_refused(
    rope: dict[str, Any], lengths: tuple[int, ...], count: int, drafter: str | None
) -> None:
    model, asked = rotating(rope), []
    texts = [random_ids(1, n, seed=n)[0].tolist() for n in lengths]
    hook = model.model.register_forward_pre_hook(lambda *_: asked.append(1))
    with pytest.raises(ModelError, match=rf"{rope['rope_type']}.*beyond {ORIGINAL} tokens.*zigzag\.attach"):
        generate(model, texts, drafter=drafter, temperature=0, max_new_tokens=count)
    hook.remove()
    assert not asked  # before any work


def test_rotary_embeddings_of_each_kind_of_layer_count() -> None:
    """Gemma 3 has two: where one of them changes, all tokens do."""
    rope = {"full_attention": DYNAMIC, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    model = WINDOWED["gemma3"](rope_parameters=rope, max_position_embeddings=ORIGINAL)
    with pytest.raises(ModelError, match=rf"\(dynamic\) changes beyond {ORIGINAL} tokens"):
        generate(model, IDS, temperature=0, max_new_tokens=5)
    generate(model, IDS, temperature=0, max_new_tokens=4)


def test_the_tokens_would_really_differ() -> None:
    """What the refusal is for: a longer row beside it would change a row's tokens."""
    model, text = rotating(LONGROPE), random_ids(1, 20)[0].tolist()
    with torch.inference_mode():
        alone = model(torch.tensor([text])).logits
        beside = model(torch.tensor([text]), position_ids=torch.arange(20)[None] + 10).logits
    assert not torch.allclose(alone, beside, atol=1e-3)


def test_a_cache_that_was_filled_on_the_other_side_is_refused() -> None:
    model = rotating(LONGROPE)
    first = generate(model, IDS, temperature=0, max_new_tokens=4)
    longer = first.sequences[0] + random_ids(1, 8, seed=2)[0].tolist()
    with pytest.raises(ModelError, match="longrope"):
        generate(model, [longer], temperature=0, max_new_tokens=2, cache=first.cache)
    assert generate(model, [longer], temperature=0, max_new_tokens=2).sequences[0] == transformers_tokens(
        rotating(LONGROPE), longer, 2
    )


def test_attached_models_rotate_as_transformers_does() -> None:
    full = LayerPlan(("full",) * 3, sink=1, recent=2)
    for rope in (DYNAMIC, LONGROPE):
        wanted = transformers_tokens(rotating(rope), IDS[0].tolist(), 10)
        assert transformers_tokens(zigzag.attach(rotating(rope), full), IDS[0].tolist(), 10) == wanted


# Caches of earlier calls


@pytest.mark.parametrize(
    "plan",
    [
        None,
        LayerPlan(("streaming", "full", "full"), sink=2, recent=6),
        LayerPlan(PLAN.kinds, sink=2, recent=8),
        LayerPlan(PLAN.kinds, sink=2, recent=6, align=2),
        HeadPlan(PLAN.full_heads(2).tolist(), sink=2, recent=6),
    ],
    ids=["none", "kinds", "recent", "align", "head-wise"],
)
def test_a_cache_of_another_plan_is_refused(plan: Any) -> None:
    model = tiny_llama()
    first = generate(model, IDS, plan=PLAN, temperature=0, max_new_tokens=3)
    held = [list(row) for row in first.cache.tokens]
    with pytest.raises(CacheError, match="one row, this model and this plan"):
        generate(model, first.sequences, plan=plan, temperature=0, cache=first.cache)
    assert first.cache.tokens == held
    plain = generate(model, first.sequences, plan=PLAN, temperature=0, max_new_tokens=5).sequences
    again = generate(model, first.sequences, plan=PLAN, temperature=0, max_new_tokens=5, cache=first.cache)
    assert again.sequences == plain


def test_the_spare_of_the_cache_counts() -> None:
    """Not that of this call: its streaming layers were made with their own."""
    model = tiny_llama()
    first = generate(model, IDS, plan=PLAN, temperature=0, max_new_tokens=3, spare=2)
    options = {"plan": PLAN, "temperature": 0, "cache": first.cache, "spare": 64}
    with pytest.raises(ArgumentError, match="spare = 2"):
        generate(model, first.sequences, drafter=LookupDrafter(3), **options)
    assert generate(model, first.sequences, drafter=LookupDrafter(2), max_new_tokens=4, **options).cache is first.cache


def test_windows_of_the_model_take_back_no_more_than_spare() -> None:
    """They stream without any plan; full layers take back whatever comes."""
    options = {"temperature": 0, "max_new_tokens": 4, "spare": 2}
    model = WINDOWED["olmo3"]()
    with pytest.raises(ArgumentError, match="windows of their own, take back at most spare = 2; give spare=3"):
        generate(model, IDS, drafter=LookupDrafter(3), **options)
    generate(model, IDS, drafter=LookupDrafter(2), **options)
    generate(tiny_llama(), IDS, drafter=LookupDrafter(3), **options)


@pytest.mark.parametrize("plan", [None, PLAN])
def test_a_cache_at_fixed_addresses_makes_room_for_trees(plan: LayerPlan | None) -> None:
    """Between chains, and an error with a tree under way leaves what was there."""
    model = tiny_llama()
    host = Host(model)
    runner = Runner(host, FixedStore(plan, host.layers, host.device, graphs=False))
    with host, torch.inference_mode():
        runner.fill([IDS[0].tolist()])
    options = {"plan": plan, "temperature": 0, "max_new_tokens": 5}
    with pytest.raises(CacheError, match="fixed addresses, for CUDA graphs, which cannot be with cuda_graphs=False"):
        generate(model, IDS, cuda_graphs=False, cache=runner, **options)
    assert runner.tokens == [IDS[0].tolist()]

    def stop(*_: Any) -> None:
        raise RuntimeError("enough")

    ids = IDS.tolist()
    with pytest.raises(RuntimeError, match="enough"):
        generate(model, ids, drafter=ModelDrafter(plan=PLAN, parents=[-1, 0]), cache=runner, on_tokens=stop, **options)
    for parents in ([-1, -1], [-1, -1, 0, 2], None):
        drafter = ModelDrafter(plan=PLAN, parents=parents)
        plain = generate(model, ids, **options).sequences
        made = generate(model, ids, drafter=drafter, cache=runner, **options)
        assert made.sequences == plain
        ids = [[*made.sequences[0], 7, 8]]


def test_a_growing_cache_is_none_for_graphs() -> None:
    model = tiny_llama()
    first = generate(model, IDS, temperature=0, max_new_tokens=3)
    with pytest.raises(CacheError, match=r"one that grows.*cuda_graphs=True"):
        generate(model, first.sequences, cuda_graphs=True, cache=first.cache, temperature=0)


# NumPy's numbers in plans


def test_plans_and_scores_hold_plain_numbers(tmp_path: Any) -> None:
    one, two, five = np.int64(1), np.int32(2), np.uint8(5)
    plan = LayerPlan(("full", "streaming"), sink=two, recent=five, align=one, num_kv_heads=two)
    plan.save(tmp_path / "plan.json")
    assert LayerPlan.load(tmp_path / "plan.json") == LayerPlan(("full", "streaming"), 2, 5, num_kv_heads=2)
    heads = HeadPlan(((True, False),), sink=two, recent=five, align=one)
    heads.save(tmp_path / "heads.json")
    assert HeadPlan.load(tmp_path / "heads.json") == HeadPlan(((True, False),), 2, 5)
    scores = HeadScores([[0.5], [0.1]], "example", two, five)
    scores.save(tmp_path / "scores.json")
    assert [type(number) for number in (plan.sink, heads.recent, scores.sink)] == [int] * 3
    made = zigzag.make_plan(scores, sparsity=np.float32(0.5))
    assert made.map() == "Fs"
    many = {"head_size": np.int32(128), "itemsize": np.int8(2), "batch": np.int16(64)}
    plain = {"head_size": 128, "itemsize": 2, "batch": 64}
    assert plan.kv_bytes(np.int32(1 << 20), **many) == plan.kv_bytes(1 << 20, **plain) > 2**31
    for bad in ({"sparsity": True}, {"sparsity": "half"}):
        with pytest.raises(ArgumentError, match="sparsity"):
            zigzag.make_plan(scores, **bad)
    with pytest.raises(ArgumentError, match="num_kv_heads"):
        LayerPlan(("full",), 1, 2, num_kv_heads=0)
    with pytest.raises(ArgumentError, match="own_windows"):
        plan.kv_bytes(10, head_size=8, own_windows=[-1])


def test_an_empty_cache_is_of_no_length() -> None:
    """After reset() a long text beyond the switch of longrope is read whole."""
    model, text = rotating(LONGROPE), random_ids(1, 30)[0].tolist()
    first = generate(model, [text], temperature=0, max_new_tokens=3)
    first.cache.reset()
    assert generate(model, [text], temperature=0, max_new_tokens=3, cache=first.cache).sequences == first.sequences


def test_what_a_fixed_cache_cannot_do_is_named() -> None:
    model = tiny_llama(2)
    with Host(model) as host, torch.inference_mode():
        runner = Runner(host, FixedStore(None, host.layers, host.device, graphs=False))
        runner.fill([[1, 2, 3]])
    with pytest.raises(CacheError, match=r"which cannot be with cuda_graphs=False$"):
        generate(model, [[1, 2, 3, 4]], temperature=0, max_new_tokens=2, cache=runner, cuda_graphs=False)


def test_a_buffer_that_was_changed_is_noticed() -> None:
    """The biases that choose GLM's experts are no parameters; the frequencies that forwards set are nobody's change."""
    model = tiny_glm4_moe(3)
    first = generate(model, IDS, temperature=0, max_new_tokens=3)
    assert generate(model, first.sequences, cache=first.cache, temperature=0, max_new_tokens=3).sequences
    model.model.rotary_emb.inv_freq.mul_(1.0)
    assert generate(model, first.sequences, cache=first.cache, temperature=0, max_new_tokens=3).sequences
    changed = [buffer for name, buffer in model.named_buffers() if name.endswith("e_score_correction_bias")]
    assert changed
    for buffer in changed:
        buffer.add_(1.0)
    with pytest.raises(CacheError, match="the weights of the model, or its active adapters, have changed"):
        generate(model, first.sequences, cache=first.cache, temperature=0, max_new_tokens=3)
