"""Running a model under a layer plan: `attach`, `detach`, and what its cache really holds."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from zigzag import ops
from zigzag.interception import NAME, Interception, decoder_config, full_attention
from zigzag.plans import LayerPlan
from zigzag.reference.errors import ArgumentError, CacheError, ModelError, PlanError
from zigzag.streaming_cache import StreamingLayer


def attach(model: Any, plan: LayerPlan, *, spare: int = 64) -> Any:
    """Make `model` run under `plan`: streaming layers see, and keep, only sink + recent tokens.

    Afterwards `model(...)` and `model.generate(...)` work as before, with one-shot or chunked prefill,
    left-padded batches and prompt-lookup decoding. A streaming layer's cache holds at most
    sink + recent + spare slots a row between forwards. A plan that is already attached is replaced.

    model: a transformers decoder with grouped-query attention and no attention windows of its own.
    plan: for the model's number of layers and KV heads.
    spare: slots beyond the window; at most so many tokens can be rolled back (rejected drafts).
    return: the model itself

    Raises PlanError if the plan is for another model, ModelError if the model cannot run plans.

    Full layers run transformers' SDPA attention; streaming layers run `zigzag.ops.attention`.
    """
    config = decoder_config(model)
    if isinstance(spare, bool) or not isinstance(spare, int) or spare < 0:
        raise ArgumentError(f"attach: spare must be a whole number of slots, 0 or more, got {spare!r}")
    if plan.num_layers != config.num_hidden_layers:
        raise PlanError(
            f"attach: the plan is for {plan.num_layers} layers, the model has {config.num_hidden_layers}; "
            f"make a plan for this model"
        )
    if plan.num_kv_heads is not None and plan.num_kv_heads != config.num_key_value_heads:
        raise PlanError(
            f"attach: the plan was made for {plan.num_kv_heads} KV heads a layer, the model has "
            f"{config.num_key_value_heads}; make a plan for this model"
        )
    detach(model)
    model._zigzag_attachment = _Attachment(model, plan, spare)
    return model


def detach(model: Any) -> Any:
    """Undo `attach`; does nothing to a model without a plan. Caches made under the plan cannot be used after."""
    attachment = getattr(model, "_zigzag_attachment", None)
    if attachment is not None:
        attachment.interception.remove()
        model._zigzag_attachment = None
    return model


def cache_bytes(cache: Cache) -> int:
    """Bytes of memory that the cache's keys and values really hold, counted on their storages."""
    tensors = [t for layer in cache.layers for t in (layer.keys, layer.values) if t is not None]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def cache_lengths(cache: Cache) -> list[int]:
    """Slots a row that each layer stores."""
    return [0 if layer.keys is None else layer.keys.shape[-2] for layer in cache.layers]


def kv_size(model: Any) -> dict[str, int]:
    """head_size, num_kv_heads and itemsize of a model, as `LayerPlan.kv_bytes` takes them."""
    config = model.config
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {"head_size": head_size, "num_kv_heads": config.num_key_value_heads, "itemsize": model.dtype.itemsize}


class _Attachment:
    def __init__(self, model: Any, plan: LayerPlan, spare: int) -> None:
        self.plan, self.spare = plan, spare
        self.interception = Interception(model, self._prepare)

    def _prepare(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before each forward: the plan's layers into an empty cache, the tokens' positions into the layers."""
        inputs = next(x for x in (*args, kwargs.get("input_ids"), kwargs.get("inputs_embeds")) if x is not None)
        cache, use_cache = kwargs.get("past_key_values"), kwargs.get("use_cache")
        if cache is None and (decoder.config.use_cache if use_cache is None else use_cache):
            kwargs["past_key_values"] = cache = DynamicCache(config=decoder.config)
        if cache is not None:
            self._fit(cache, decoder.config)
        seen = 0 if cache is None else cache.get_seq_length()
        streaming = [] if cache is None else [x for x in cache.layers if isinstance(x, StreamingLayer)]
        padding = streaming[0].max_padding if streaming else 0
        mask = kwargs.get("attention_mask")
        if mask is not None:
            _check_mask(mask, inputs.shape[0], seen + inputs.shape[1])
            if inputs.shape[1] > 1 or padding >= seen:  # reads the device for chunks, never in a decode step
                padding = _left_padding(mask)
        elif padding and seen:
            raise ModelError("the cache holds padded rows: give the attention_mask [B, tokens seen + new] again")
        positions = _positions(mask if padding else None, inputs, seen)
        for layer in streaming:
            layer.receive(positions, padding)
        kwargs[NAME] = _Attend(self.plan, cache, positions, contiguous=seen == 0 and padding == 0)

    def _fit(self, cache: Any, config: Any) -> None:
        if not isinstance(cache, Cache) or getattr(cache, "offloading", False):
            raise CacheError(f"a plan needs a dynamic, not offloaded cache, got {type(cache).__name__}")
        ours = [isinstance(layer, StreamingLayer) for layer in cache.layers]
        if any(ours):
            self._check_ours(cache, ours)
        elif cache.get_seq_length() == 0:
            self._install(cache, config.num_hidden_layers)
        elif self.plan.num_full < self.plan.num_layers:
            raise CacheError(
                "the cache was filled without this plan, so its streaming layers hold too much and in another form; "
                "start with an empty cache"
            )

    def _check_ours(self, cache: Cache, ours: list[bool]) -> None:
        plan = self.plan
        same = ours == [plan.is_streaming(i) for i in range(plan.num_layers)] and all(
            (layer.sink, layer.recent, layer.spare) == (plan.sink, plan.recent, self.spare)
            for layer in cache.layers
            if isinstance(layer, StreamingLayer)
        )
        if not same:
            raise CacheError("the cache was filled under another plan or spare; start with an empty cache")

    def _install(self, cache: Any, num_layers: int) -> None:
        kinds = {type(layer) for layer in cache.layers}
        if kinds - {DynamicLayer} or (not kinds and cache.layer_class_to_replicate is not DynamicLayer):
            raise CacheError(
                f"a plan needs a dynamic cache, got {type(cache).__name__} of "
                f"{', '.join(sorted(k.__name__ for k in kinds)) or 'other'} layers; leave cache_implementation unset"
            )
        plan = self.plan
        cache.layers[:] = [
            StreamingLayer(plan.sink, plan.recent, self.spare) if plan.is_streaming(i) else DynamicLayer()
            for i in range(num_layers)
        ]


class _Attend:
    """The attention of one forward: full layers by transformers, streaming layers by `zigzag.ops.attention`."""

    def __init__(self, plan: LayerPlan, cache: Any, positions: Tensor, *, contiguous: bool) -> None:
        self.plan, self.cache, self.positions, self.contiguous = plan, cache, positions, contiguous

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None
    ) -> Tensor:
        layer: int = module.layer_idx  # type: ignore[assignment]
        if not self.plan.is_streaming(layer):
            return full_attention(module, query, key, value, mask, scaling)
        where: dict[str, Tensor] = {}
        if not self.contiguous:
            keys = self.positions if self.cache is None else self.cache.layers[layer].attended_positions
            where = {"query_positions": self.positions, "key_positions": keys}
        window = {"sink": self.plan.sink, "recent": self.plan.recent, "align": self.plan.align}
        return ops.attention(query, key, value, **window, scale=scaling, **where)[0]


def _check_mask(mask: Any, batch: int, length: int) -> None:
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        shape = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ModelError(f"under a plan the attention mask must be [B, tokens seen + new] of 0 and 1, got {shape}")
    if tuple(mask.shape) != (batch, length):
        raise ModelError(
            f"under a plan the attention mask must cover all tokens seen and new: [{batch}, {length}], "
            f"got {list(mask.shape)}"
        )


def _left_padding(mask: Tensor) -> int:
    """Most padding that any row starts with; padding elsewhere is refused, since it would use up the window."""
    real = mask != 0
    if bool((real[:, :-1] & ~real[:, 1:]).any()):
        raise ModelError("under a plan rows must be padded on the left: set tokenizer.padding_side = 'left'")
    return int((~real).sum(dim=-1).max())


def _positions(mask: Tensor | None, inputs: Tensor, seen: int) -> Tensor:
    """[B, Tq] positions counted from each row's first real token, -1 for padding."""
    new = inputs.shape[1]
    columns = torch.arange(seen, seen + new, device=inputs.device)
    if mask is None:
        return columns.expand(inputs.shape[0], new)
    return (columns - (mask == 0).sum(dim=-1, keepdim=True)).clamp(min=-1)
