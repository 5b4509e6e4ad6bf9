"""What a plan cannot be honoured with, told before weights are loaded: what was asked, why not, what to do."""

from collections.abc import Iterator
from typing import Any

from vllm.platforms import current_platform

from zigzag.plans.layers import LayerPlan
from zigzag.reference.errors import PlanError
from zigzag.serving.groups import ONE_WINDOW

PLAIN_CACHES = ("auto", "bfloat16", "float16", "half", "float", "float32")
DRAFTERS = ("ngram",)
LEAST_CAPABILITY = 80


def check_config(config: Any, plan: LayerPlan) -> None:
    """PlanError with all reasons for which vLLM's configuration and the plan do not go together."""
    reasons = [*_of_the_model(config.model_config, plan), *_of_the_engine(config)]
    if reasons:
        raise PlanError("zigzag: this plan cannot be served: " + "; ".join(reasons))


def _of_the_model(model: Any, plan: LayerPlan) -> Iterator[str]:
    text = model.hf_text_config
    layers, heads = text.num_hidden_layers, model.get_total_num_kv_heads()
    if plan.num_layers != layers:
        yield f"it is for {plan.num_layers} layers, the model has {layers}: make one for this model"
    if plan.num_kv_heads not in (None, heads):
        yield f"it is for {plan.num_kv_heads} KV heads, the model has {heads}: make one for this model"
    if isinstance(plan.recent, tuple):
        yield f"its streaming layers have windows of their own, and {ONE_WINDOW}"
    if plan.streams and plan.recent == 0:
        yield "it keeps no recent tokens, so a query would not see itself: give recent"
    if model.use_mla:
        yield "the model has latent attention (MLA), whose layers have one cache for all heads"
    kinds = sorted(set(getattr(text, "layer_types", None) or ()) - {"full_attention"})
    if kinds or (getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True)):
        yield f"the model has layers of its own kinds ({', '.join(kinds) or 'sliding windows'})"
    if model.is_hybrid or model.is_attention_free:
        yield "the model has layers that keep a state and not keys, of which a plan cannot speak"
    if model.is_mm_prefix_lm:
        yield "the model sees images in both directions"


def _of_the_engine(config: Any) -> Iterator[str]:
    parallel, cache = config.parallel_config, config.cache_config
    if not current_platform.is_cpu() and not current_platform.is_cuda():
        yield f"attention of streaming layers is there for CPUs and CUDA, not for {current_platform.device_type}"
    if current_platform.is_cuda() and not current_platform.has_device_capability(LEAST_CAPABILITY):
        yield "attention of streaming layers wants a card of compute capability 8.0 or newer, as FlashAttention does"
    if cache.cache_dtype not in PLAIN_CACHES:
        yield f"kv_cache_dtype={cache.cache_dtype} has not been tested with it: take auto"
    if config.scheduler_config.disable_hybrid_kv_cache_manager:
        yield "layers of two kinds need the hybrid KV cache manager: leave out --disable-hybrid-kv-cache-manager"
    if config.kv_transfer_config is not None:
        yield "a KV connector moves blocks that streaming layers have given back: leave out kv_transfer_config"
    for name in ("pipeline_parallel_size", "decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, name, 1) > 1:
            yield f"{name}={getattr(parallel, name)} has not been tested with it: take 1, or tensor parallelism"
    drafts = config.speculative_config
    if drafts is not None and drafts.method not in DRAFTERS:
        yield (
            f"drafts by {drafts.method}, whose layers vLLM wants in one group of blocks, which a plan splits: take "
            f"{', '.join(DRAFTERS)}, or none"
        )
