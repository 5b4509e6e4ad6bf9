"""Which class a layer gets, what cache it asks for, and whose attention cannot stream."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from engines import expected, options
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.layers.attention.attention import Attention
from vllm.v1.kv_cache_interface import FullAttentionSpec

from zigzag import LayerPlan
from zigzag.reference.errors import PlanError
from zigzag.serving.vllm import register
from zigzag.serving.vllm.layers import StreamingAttention
from zigzag.serving.vllm.spec import StreamingSpec

KNOWN = expected()["tiny-glm"]
THIRTEENTH = LayerPlan(("full",) * 5 + ("streaming",) * 7, 64, 32, align=32)  # five full layers need two sets


def config(plan: str | None) -> VllmConfig:
    return EngineArgs(KNOWN["model"], **options(plan, max_model_len=512)).create_engine_config()


@pytest.fixture
def planned() -> Iterator[VllmConfig]:
    with set_current_vllm_config(made := config(KNOWN["runs"]["half"]["plan"])):
        yield made


def test_a_name_that_is_given_by_place(planned: VllmConfig) -> None:
    """Else a layer would be full without a word."""
    places = (8, 32, 0.2, 4, None, None, None, None, None, None, "model.layers.1.self_attn.attn")
    assert type(Attention(*places)) is StreamingAttention


def layer(number: int, kind: type = Attention, **more: Any) -> Any:
    return kind(8, 32, 0.2, num_kv_heads=4, prefix=f"model.layers.{number}.self_attn.attn", **more)


def test_layers_of_a_plan(planned: VllmConfig) -> None:
    for number, name in enumerate(LayerPlan.load(KNOWN["runs"]["half"]["plan"]).kinds):
        made = layer(number)
        spec = made.get_kv_cache_spec(planned)
        assert isinstance(made, StreamingAttention) == (name == "streaming") == isinstance(spec, StreamingSpec)
        if name == "streaming":
            assert (spec.sink, spec.sliding_window, spec.align, spec.block_size) == (8, 56, 1, 32)
            assert (spec.num_kv_heads, spec.head_size) == (4, 32) and spec.page_size_bytes == 4 * 32 * 64 * 4
        else:
            assert type(spec) is FullAttentionSpec


def test_sets_of_layers(tmp_path: Path) -> None:
    THIRTEENTH.save(tmp_path / "plan.json")
    with set_current_vllm_config(made := config(str(tmp_path / "plan.json"))):
        specs = [layer(number).get_kv_cache_spec(made) for number in range(5, 12)]
    assert [spec.part for spec in specs] == sorted(spec.part for spec in specs) and specs[-1].part > 0
    assert {(spec.sink, spec.align) for spec in specs} == {(64, 32)}


def test_nothing_happens_without_a_plan() -> None:
    register()
    register()
    with set_current_vllm_config(made := config(None)):
        assert type(layer(1)) is Attention
        assert type(layer(2).get_kv_cache_spec(made)) is FullAttentionSpec


@pytest.mark.parametrize(
    "more",
    [
        {"alibi_slopes": [1.0] * 8},
        {"logits_soft_cap": 30.0},
        {"per_layer_sliding_window": 64},
        {"sinks": 1},
        {"chunk_lookback": 2},
        {"attn_type": "encoder_only"},
    ],
    ids=str,
)
def test_attention_of_another_kind(more: dict[str, Any], planned: VllmConfig) -> None:
    with pytest.raises(PlanError, match=f"layers.1.self_attn.attn has {next(iter(more))}"):
        layer(1, **more)


def test_a_checkpoint_with_a_quantized_cache(planned: VllmConfig) -> None:
    """It makes the cache one of fp8 after the configuration was checked; its pages would be read as other numbers."""
    with pytest.raises(PlanError, match="wants a quantized cache"):
        layer(1, quant_config=SimpleNamespace(kv_cache_scheme={"num_bits": 8}))
    plain = SimpleNamespace(
        kv_cache_scheme=None, online_quantization_config=None, get_quant_method=lambda *given, **rest: None
    )
    assert type(layer(1, quant_config=plain)) is StreamingAttention


def test_a_layer_without_a_number(planned: VllmConfig) -> None:
    with pytest.raises(PlanError, match="is no layer that a plan speaks of"):
        Attention(8, 32, 0.2, num_kv_heads=4, prefix="encoder.attn")


def test_another_class(planned: VllmConfig) -> None:
    class Other(Attention):
        pass

    with pytest.raises(PlanError, match="is a Other, and only vLLM's plain Attention can stream"):
        layer(1, Other)
    assert type(layer(0, Other)) is Other
