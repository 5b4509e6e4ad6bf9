"""The layers of a model that stream: vLLM's own `Attention` with another backend and another cache."""

from collections.abc import Mapping
from inspect import signature
from typing import Any

from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.attention.attention import Attention
from vllm.model_executor.models.utils import extract_layer_index
from vllm.platforms import current_platform
from vllm.v1.attention.backend import AttentionBackend, AttentionType
from vllm.v1.kv_cache_interface import KVCacheSpec, get_kv_quant_mode

from zigzag.plans.layers import LayerPlan
from zigzag.plans.window import one_window
from zigzag.reference.errors import PlanError
from zigzag.serving.groups import ONE_WINDOW, of_plan
from zigzag.serving.vllm import private
from zigzag.serving.vllm.options import plan_of, served_plan
from zigzag.serving.vllm.spec import StreamingSpec

# Arguments of `Attention` that change nothing of what a query sees. Any other makes a layer that cannot stream.
PLAIN = {
    "num_heads", "head_size", "scale", "num_kv_heads", "cache_config", "quant_config", "prefix",
    "mm_prefix_clamp_sliding_window", "head_size_v",
}  # fmt: skip


NAMES = tuple(signature(Attention.__init__).parameters)[1:]


def class_of(cls: type, prefix: str) -> type:
    """What `Attention` makes for the layer with this name: itself, or a layer that streams.

    Raises PlanError where the plan lets a layer stream whose attention is of another kind.
    """
    plan = plan_of(get_current_vllm_config().additional_config)
    if plan is None or not plan.is_streaming(number_of(prefix)):
        return cls
    if cls is not Attention:
        raise PlanError(f"zigzag: {prefix} is a {cls.__name__}, and only vLLM's plain Attention can stream")
    return StreamingAttention


def prefix_of(given: tuple[Any, ...], options: Mapping[str, Any]) -> str:
    """A layer's name among the arguments of `Attention`; empty where there is none, as when a module is copied."""
    return str({**dict(zip(NAMES, given, strict=False)), **options}.get("prefix", ""))


def number_of(prefix: str) -> int:
    """Which layer of the model has this name."""
    try:
        return int(extract_layer_index(prefix))
    except AssertionError as error:
        raise PlanError(f"zigzag: {prefix} is no layer that a plan speaks of ({error}): serve without one") from error


class StreamingAttention(Attention):
    """Sees and keeps the plan's sinks and its recent tokens."""

    def __init__(self, *given: Any, **options: Any) -> None:
        prefix = prefix_of(given, options)
        named = {**dict(zip(NAMES, given, strict=False)), **options}
        if getattr(named.get("quant_config"), "kv_cache_scheme", None) is not None:
            raise PlanError(
                f"zigzag: the checkpoint wants a quantized cache ({prefix}), which has not been tested with a plan: "
                f"serve without one, or a checkpoint that has no kv_cache_scheme"
            )
        for name, value in named.items():
            if name not in PLAIN and value is not None and not (name == "attn_type" and value == AttentionType.DECODER):
                raise PlanError(f"zigzag: {prefix} has {name} = {value!r}, so it cannot stream: make it full")
        config = get_current_vllm_config()
        super().__init__(*given, **options | {"attn_backend": streaming_backend()})
        plan = served_plan(config.additional_config)
        self.impl.window = one_window("vLLM", plan, ONE_WINDOW)
        self.impl.room = (config.cache_config.block_size, config.model_config.max_model_len)

    def get_kv_cache_spec(self, vllm_config: Any) -> KVCacheSpec:
        block, plan = vllm_config.cache_config.block_size, served_plan(vllm_config.additional_config)
        window = one_window("vLLM", plan, ONE_WINDOW)
        return StreamingSpec(
            block_size=block,
            num_kv_heads=self.num_kv_heads,
            head_size=self.head_size,
            head_size_v=self.head_size_v,
            dtype=self.kv_cache_torch_dtype,
            kv_quant_mode=get_kv_quant_mode(self.kv_cache_dtype),
            sliding_window=window.recent,
            sink=window.sink,
            align=window.align,
            part=part_of(plan, number_of(self.layer_name), block, vllm_config),
        )


def streaming_backend() -> type[AttentionBackend]:
    """Attention of streaming layers where vLLM runs."""
    if current_platform.is_cpu():
        private.check(private.ATTENTION["cpu"])
        from zigzag.serving.vllm.cpu_attention import StreamingBackend as OnCpu

        return OnCpu
    private.check(private.ATTENTION["cuda"])
    from zigzag.serving.vllm.cuda_attention import StreamingBackend as OnCuda

    return OnCuda


def part_of(plan: LayerPlan, layer: int, block: int, vllm_config: Any) -> int:
    """The set of streaming layers that this one belongs to."""
    chosen, _ = of_plan(plan, vllm_config.model_config.max_model_len, block, vllm_config.max_in_flight_tokens)
    return chosen.part_of(plan.streaming_layers.index(layer))
