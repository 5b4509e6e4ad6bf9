"""Where vLLM learns of plans: its configuration is checked, its layers are chosen, its caches have a manager.

Two methods of vLLM are replaced, each by one that does nothing else where no plan was asked for.
"""

import logging
from typing import Any

from zigzag.serving.groups import told
from zigzag.serving.vllm import private
from zigzag.serving.vllm.options import plan_of

log = logging.getLogger("vllm.plugins.zigzag")  # below vLLM's own, whose settings hold for it
_installed = False


def install() -> None:
    """Once a process. A vLLM that lacks what is needed, or runs where no plan is served, is left alone.

    But for its configurations: there a plan is refused, with the reason.
    """
    global _installed
    if _installed:
        return
    _installed = True
    try:
        _check_configurations()
    except ImportError as error:  # of a vLLM that is built otherwise: whoever asks for no plan shall not notice
        log.warning("zigzag: plans cannot be served by this vLLM (%s)", error)
        return
    if is_served_here() and not private.missing():
        _choose_layers()
        _register_caches()


def is_served_here() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu() or current_platform.is_cuda())


def _check_configurations() -> None:
    """Refuse before weights are loaded: a configuration is made before them, in the first process."""
    from vllm.config import VllmConfig

    before = VllmConfig.__post_init__

    def __post_init__(self: Any, *given: Any) -> None:
        plan = plan_of(self.additional_config)
        if plan is not None:
            private.check()
        before(self, *given)
        if plan is not None and self.model_config is not None:
            from zigzag.serving.vllm.refusals import check_config

            check_config(self, plan)
            longest, chunk = self.model_config.max_model_len, self.max_in_flight_tokens
            log.info("zigzag: %s", told(plan, longest, self.cache_config.block_size, chunk))

    VllmConfig.__post_init__ = __post_init__


def _choose_layers() -> None:
    from vllm.model_executor.layers.attention.attention import Attention

    from zigzag.serving.vllm.layers import class_of, prefix_of

    def __new__(cls: type, *given: Any, **options: Any) -> Any:
        prefix = prefix_of(given, options)
        return object.__new__(class_of(cls, prefix) if prefix else cls)

    Attention.__new__ = __new__


def _register_caches() -> None:
    from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

    from zigzag.serving.vllm.spec import StreamingManager, StreamingSpec

    KVCacheSpecRegistry._ensure_registered()
    KVCacheSpecRegistry.register(StreamingSpec, StreamingManager)
