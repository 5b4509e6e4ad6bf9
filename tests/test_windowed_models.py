"""Models of today mix full and windowed layers: a plan speaks of the full ones, the others stay as they are.

Every logit and token is compared with the whole computation, masked by the reference (`written_out`).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from forwards import assert_same_logits, forward_in_pieces, padded
from models import random_ids
from windowed_models import WINDOW, WINDOWED, gpt_oss, qwen3_next, tiny
from written_out import written_out

import zigzag
from zigzag import HeadPlan, LayerPlan, ModelError, PlanError
from zigzag.caches.streaming import StreamingLayer
from zigzag.measuring.answers import answer_losses
from zigzag.measuring.prompts import Prompt
from zigzag.running.attach import cache_bytes, kv_size
from zigzag.running.fixed import FixedStore
from zigzag.running.growing import GrowingStore
from zigzag.running.host import Host
from zigzag.running.model_layers import layers_of
from zigzag.running.runner import Runner

PLANS = {
    "one streams": LayerPlan(("full", "streaming"), sink=2, recent=5),
    "all stream": LayerPlan(("streaming", "streaming"), sink=1, recent=4),
    "head-wise": HeadPlan(((True, False), (False, False)), sink=2, recent=5),
    "wider than its windows": LayerPlan(("streaming", "full"), sink=3, recent=11),
}


@pytest.fixture(scope="module", params=WINDOWED)
def model(request: pytest.FixtureRequest) -> Any:
    return WINDOWED[request.param]()


@pytest.fixture(autouse=True)
def _detached(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "model" in request.fixturenames:
        zigzag.detach(request.getfixturevalue("model"))


@torch.inference_mode()
def expected(model: Any, ids: torch.Tensor, plan: Any, padding: tuple[int, ...] = (0,)) -> torch.Tensor:
    heads = np.ones((2, 2), dtype=bool) if plan is None else plan.full_heads(2)
    window = {} if plan is None else {"sink": plan.sink, "recent": plan.recent, "align": plan.align}
    positions = (torch.arange(ids.shape[1]) - torch.tensor(padding)[:, None]).clamp(min=0).expand(len(ids), -1)
    with written_out(model, heads, padding=padding, **window):
        return model(ids, position_ids=positions, use_cache=False).logits


def expected_tokens(model: Any, tokens: list[int], plan: Any, count: int) -> list[int]:
    for _ in range(count):
        tokens = [*tokens, int(expected(model, torch.tensor([tokens]), plan)[0, -1].argmax())]
    return tokens


def test_the_oracle_is_the_model(model: Any) -> None:
    ids = random_ids(2, 24)
    with torch.inference_mode():
        assert_same_logits(expected(model, ids, None), model(ids).logits)
    for plan in PLANS.values():
        with pytest.raises(AssertionError):
            assert_same_logits(expected(model, ids, plan), expected(model, ids, None))


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_attached_in_pieces(model: Any, plan: Any) -> None:
    ids = random_ids(2, 33)
    zigzag.attach(model, plan, spare=3)
    logits, cache = forward_in_pieces(model, ids, [14, 1, 9, 1, 1, 7])
    kinds = [type(layer).__name__ for layer in cache.layers]
    zigzag.detach(model)
    assert_same_logits(logits, expected(model, ids, plan))
    assert kinds[::2] == ["DynamicSlidingWindowLayer"] * 2


@pytest.mark.parametrize("plan", [PLANS["one streams"], PLANS["head-wise"]], ids=["layers", "heads"])
def test_attached_with_padding(model: Any, plan: Any) -> None:
    ids, mask, padding = padded((20, 11, 3))
    zigzag.attach(model, plan, spare=3)
    logits, _ = forward_in_pieces(model, ids, [13, 1, 6], mask)
    zigzag.detach(model)
    real = mask.bool()
    assert_same_logits(logits[real], expected(model, ids, plan, padding)[real])


def test_transformers_generate(model: Any) -> None:
    """Its own loop, with a cache that it makes, and with prompt lookup, which takes tokens back."""
    plan, ids = PLANS["one streams"], random_ids(1, 12).repeat(1, 2)
    wanted = expected_tokens(model, ids[0].tolist(), plan, 12)
    zigzag.attach(model, plan)
    for options in ({}, {"prompt_lookup_num_tokens": 3}):
        output = model.generate(ids, max_new_tokens=12, do_sample=False, **options)
        assert output[0].tolist() == wanted


@pytest.mark.parametrize("drafter", [None, "lookup", "streaming"])
@pytest.mark.parametrize("name", PLANS)
def test_generate(model: Any, name: str, drafter: str | None) -> None:
    """Rows of different lengths, drafts taken back: the tokens of each row alone."""
    texts = [random_ids(1, n, seed=n)[0].tolist() * 2 for n in (11, 4)]
    result = zigzag.generate(
        model, texts, plan=PLANS[name], drafter=drafter, temperature=0, max_new_tokens=9, num_draft_tokens=3
    )
    assert result.sequences == [expected_tokens(model, text, PLANS[name], 9) for text in texts]


def test_generate_without_a_plan_with_trees(model: Any) -> None:
    from zigzag.generation.drafting import ModelDrafter

    drafter = ModelDrafter(plan=LayerPlan(("streaming",) * 2, 1, 3), parents=[-1, -1, 0, 0, 1])
    text = random_ids(1, 15)[0].tolist()
    result = zigzag.generate(model, [text], drafter=drafter, temperature=0, max_new_tokens=8)
    assert result.sequences == [expected_tokens(model, text, None, 8)]


@pytest.mark.parametrize("plan", [None, PLANS["one streams"], PLANS["wider than its windows"]], ids=str)
@pytest.mark.parametrize("store", [GrowingStore, FixedStore])
def test_runners_take_back(model: Any, plan: Any, store: Any) -> None:
    """Both stores, tokens taken back beyond the windows' ends, and a chunk longer than a ring."""
    options = {"capacity": 16, "graphs": False} if store is FixedStore else {}
    text, more = random_ids(1, 25)[0].tolist(), random_ids(1, 21, seed=5)[0].tolist()
    with Host(model) as host, torch.inference_mode():
        runner = Runner(host, store(plan, host.layers, host.device, spare=4, **options))
        first = runner.sync([text]).logits[0, -1].clone()
        fed = runner.feed(torch.tensor([[5, 6, 7]])).logits[0].clone()
        runner.keep([[0]], [[5]])
        second = runner.sync([[*text, *more]]).logits[0, -1].clone()
    assert_same_logits(first, expected(model, torch.tensor([text]), plan)[0, -1])
    assert_same_logits(fed, expected(model, torch.tensor([[*text, 5, 6, 7]]), plan)[0, -3:])
    assert_same_logits(second, expected(model, torch.tensor([[*text, *more]]), plan)[0, -1])


def test_bytes(model: Any) -> None:
    plan = PLANS["one streams"]
    zigzag.attach(model, plan, spare=3)
    _, cache = forward_in_pieces(model, random_ids(1, 41), [40, 1])
    size = kv_size(model)
    assert size["own_windows"] == (WINDOW, WINDOW)
    assert cache_bytes(cache) == plan.kv_bytes(41, spare=3, **size)
    own = 2 * 2 * WINDOW * size["head_size"] * size["itemsize"] * size["num_kv_heads"]
    assert plan.kv_bytes(41, spare=3, **{**size, "own_windows": ()}) == cache_bytes(cache) - own


def test_budget_in_bytes_counts_the_own_windows() -> None:
    scores = zigzag.HeadScores([[0.9], [0.1], [0.5]], "example", 2, 6)
    size = {"context": 100, "head_size": 8, "spare": 0}
    both_full = zigzag.make_plan(scores, num_full=2).kv_bytes(100, head_size=8, spare=0)
    assert zigzag.make_plan(scores, kv_bytes=both_full, **size).num_full == 2
    assert zigzag.make_plan(scores, kv_bytes=both_full, own_windows=[50], **size).num_full == 1


def prompts() -> list[Prompt]:
    ids = random_ids(2, 30, seed=3).tolist()
    return [Prompt(tuple(row[:-2]), tuple(row[-2:]), depth=0.0, seed=0) for row in ids]


@pytest.mark.parametrize("method", ["gate_gradient", "lost_mass", "output_deviation", "layer_loss"])
def test_scores_are_of_the_full_layers(model: Any, method: str) -> None:
    sinks = model.config.model_type == "gpt_oss"
    if sinks and method != "layer_loss":
        with pytest.raises(ModelError, match="learned sinks; use method='layer_loss'"):
            zigzag.calibrate(model, method=method, sink=2, recent=5, prompts=prompts())
        return
    scores = zigzag.calibrate(model, method=method, sink=2, recent=5, prompts=prompts())
    assert scores.values.shape == (2, 2)
    assert scores.values.any(axis=1).all()
    assert zigzag.make_plan(scores, num_full=1).num_layers == 2


def test_layer_loss_is_of_the_right_layers() -> None:
    model, window = WINDOWED["olmo3"](), {"sink": 2, "recent": 5}
    scores = zigzag.calibrate(model, method="layer_loss", prompts=prompts(), **window)

    def loss(heads: np.ndarray) -> float:
        with written_out(model, heads, **window), torch.inference_mode():
            return float(answer_losses(model, prompts())[0].mean())

    whole = np.ones((2, 2), dtype=bool)
    for layer in range(2):
        heads = whole.copy()
        heads[layer] = False
        assert scores.values[layer] == pytest.approx(loss(heads) - loss(whole), abs=5e-6)  # losses are float32


def test_a_plan_for_all_layers_is_refused(model: Any) -> None:
    plan = LayerPlan(("full", "streaming") * 2, sink=2, recent=5)
    with pytest.raises(PlanError, match=r"4 layers, the model has 2 with full attention \(and 2 others"):
        zigzag.attach(model, plan)
    with pytest.raises(PlanError, match="2 with full attention"):
        zigzag.generate(model, [[1, 2, 3]], plan=plan)


def test_streaming_layers_pose_as_full_where_windows_stand_beside_them(model: Any) -> None:
    """transformers takes the sizes of the windows' masks from the first cache layer that calls itself sliding."""
    zigzag.attach(model, PLANS["all stream"], spare=3)
    _, cache = forward_in_pieces(model, random_ids(1, 30), [30])
    assert [isinstance(layer, StreamingLayer) for layer in cache.layers] == [False, True, False, True]
    assert cache.is_sliding == [True, False, True, False]
    assert cache.layers[1].get_mask_sizes(4) == (34, 0)


def test_learned_sinks_matter() -> None:
    """The oracle and the library both see them: with sinks that take all, nothing of the values is left."""
    model, ids = gpt_oss(), random_ids(1, 20)
    plan = PLANS["one streams"]
    before = expected(model, ids, plan)
    for layer in model.model.layers:
        torch.nn.init.constant_(layer.self_attn.sinks, 3.0)
    after = expected(model, ids, plan)
    with pytest.raises(AssertionError):
        assert_same_logits(before, after)
    zigzag.attach(model, plan)
    with torch.inference_mode():
        assert_same_logits(model(ids).logits, after)


@pytest.mark.parametrize("plan", [PLANS["one streams"], PLANS["all stream"]], ids=["one", "all"])
def test_layers_with_a_state_run_attached(plan: LayerPlan) -> None:
    """Qwen3-Next: its linear layers keep their state, the plan speaks of its full layers."""
    model, ids = qwen3_next(), random_ids(1, 30)
    wanted = expected(model, ids, plan)
    zigzag.attach(model, plan, spare=3)
    logits, _ = forward_in_pieces(model, ids, [20, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1])
    assert_same_logits(logits, wanted)
    output = model.generate(ids, max_new_tokens=5, do_sample=False)
    zigzag.detach(model)
    assert output[0].tolist() == expected_tokens(model, ids[0].tolist(), plan, 5)


def test_layers_with_a_state_are_refused_by_generate() -> None:
    with pytest.raises(ModelError, match=r"linear_attention.*zigzag.attach"):
        zigzag.generate(qwen3_next(), [[1, 2, 3]], temperature=0)


def test_chunked_attention_is_no_window() -> None:
    """Llama 4: a token sees its own chunk, however near the one before is."""
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    kinds = ["chunked_attention", "full_attention"] * 2
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "moe_layers": [], "intermediate_size_mlp": 48}
    model = tiny("llama4_text", layer_types=kinds, attention_chunk_size=8, rope_parameters=rope, **experts)
    layers = layers_of(model)
    assert layers.others == {0: "chunked_attention", 2: "chunked_attention"} and layers.own_windows == ()
    with pytest.raises(ModelError, match=r"chunked_attention.*zigzag.attach"):
        zigzag.generate(model, [[1, 2, 3]], temperature=0)
    ids = random_ids(1, 30)
    wanted = model(ids).logits
    zigzag.attach(model, LayerPlan(("full", "full"), 1, 1))
    torch.testing.assert_close(model(ids).logits, wanted)


def test_windows_in_all_layers_run_without_a_plan() -> None:
    """As Mistral 7B v0.1: there is nothing to decide, but drafts and rows of different lengths work."""
    kind = {"layer_types": ["sliding_attention"] * 4, "sliding_window": WINDOW}
    model = tiny("ministral", **kind)
    texts = [random_ids(1, n, seed=n)[0].tolist() * 2 for n in (11, 4)]
    heads = np.ones((0, 2), dtype=bool)
    wanted = [list(text) for text in texts]
    for row in wanted:
        for _ in range(9):
            with written_out(model, heads), torch.inference_mode():
                row.append(int(model(torch.tensor([row]), use_cache=False).logits[0, -1].argmax()))
    result = zigzag.generate(model, texts, drafter="lookup", temperature=0, max_new_tokens=9)
    assert result.sequences == wanted
    for call in (
        lambda: zigzag.attach(model, LayerPlan(("full",) * 4, 1, 2)),
        lambda: zigzag.generate(model, texts, plan=LayerPlan(("full",) * 4, 1, 2)),
        lambda: zigzag.calibrate(model, method="lost_mass", sink=2, recent=5, prompts=prompts()),
        lambda: kv_size(model),
    ):
        with pytest.raises(ModelError, match=r"window of 7.*nothing for a plan to decide; run it without"):
            call()


def test_latent_attention_runs_without_a_plan() -> None:
    """DeepSeek, GLM-4.7-Flash: a latent is cached, which no plan can cut."""
    latent = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
    model = tiny("deepseek_v2", layer_types=None, first_k_dense_replace=4, num_key_value_heads=4, **latent)
    ids = random_ids(1, 9).repeat(1, 2)
    wanted = model.generate(ids, max_new_tokens=8, do_sample=False)[0].tolist()
    assert zigzag.generate(model, ids, drafter="lookup", temperature=0, max_new_tokens=8).sequences == [wanted]
    zigzag.attach(model, LayerPlan(("full",) * 4, 1, 2))
    assert model.generate(ids, max_new_tokens=8, do_sample=False)[0].tolist() == wanted
    zigzag.detach(model)
    plan = LayerPlan(("full", "streaming") * 2, 1, 2)
    for call in (
        lambda: zigzag.attach(model, plan),
        lambda: zigzag.generate(model, ids, plan=plan),
        lambda: zigzag.calibrate(model, method="gate_gradient", sink=2, recent=5, prompts=prompts()),
        lambda: kv_size(model),
    ):
        with pytest.raises(ModelError, match=r"latent attention.*run it without a plan"):
            call()
