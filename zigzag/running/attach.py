"""Running a model under a plan: `attach`, `detach`, and what its cache really holds."""

from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from zigzag.caches.mixed import full_groups_of, held, new_layer, streaming_parts
from zigzag.models.decoder import Decoder
from zigzag.plans.heads import Plan
from zigzag.reference.errors import ArgumentError, CacheError, ModelError
from zigzag.running.attention import Attention
from zigzag.running.interception import (
    ATTACHMENT,
    NAME,
    Interception,
    attachment_of,
    check_plan,
    decoder_config,
    full_attention,
)

Model = TypeVar("Model", bound=Decoder)


def attach(model: Model, plan: Plan, *, spare: int = 64) -> Model:
    """Make `model` run under `plan`: streaming layers see, and keep, only sink + recent tokens.

    Afterwards `model(...)` and `model.generate(...)` work as before, with one-shot or chunked prefill,
    left-padded batches and prompt-lookup decoding. A streaming layer's cache holds at most
    sink + recent + spare slots a row between forwards. A plan that is already attached is replaced.

    model: a transformers decoder with grouped-query attention and no attention windows of its own.
    plan: a LayerPlan, or a HeadPlan (each mixed layer then keeps two caches), for the model's layers and KV heads.
    spare: slots beyond the window; at most so many tokens can be rolled back (rejected drafts).
    return: the model itself

    Raises PlanError if the plan is for another model, ModelError if the model cannot run plans.

    Full layers run transformers' SDPA attention, streaming layers `zigzag.ops.attention`; layers that are both run the
    two for a prompt and `zigzag.ops.mixed_attention` for few tokens.
    """
    config = decoder_config(model)
    if isinstance(spare, bool) or not isinstance(spare, int) or spare < 0:
        raise ArgumentError(f"attach: spare must be a whole number of slots, 0 or more, got {spare!r}")
    check_plan("attach", plan, config)
    detach(model)
    setattr(model, ATTACHMENT, _Attachment(model, plan, spare))
    return model


def detach(model: Model) -> Model:
    """Undo `attach`; does nothing to a model without a plan. Caches made under the plan cannot be used after."""
    attachment = attachment_of(model)
    if attachment is not None:
        attachment.interception.remove()
        setattr(model, ATTACHMENT, None)
    return model


def cache_bytes(cache: Cache) -> int:
    """Bytes of memory that the cache's keys and values really hold, counted on their storages."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held(cache.layers)}.values())


def cache_lengths(cache: Cache) -> list[int]:
    """Slots a row that each layer stores; of a head-mixed one, those of its full heads."""
    layers: list[Any] = cache.layers
    return [0 if layer.keys is None else layer.keys.shape[-2] for layer in layers]


def kv_size(model: Decoder) -> dict[str, int]:
    """head_size, num_kv_heads and itemsize of a model, as `LayerPlan.kv_bytes` takes them."""
    config = model.config
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {"head_size": head_size, "num_kv_heads": config.num_key_value_heads, "itemsize": model.dtype.itemsize}


class _Attachment:
    def __init__(self, model: Decoder, plan: Plan, spare: int) -> None:
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
        streaming = [] if cache is None else streaming_parts(cache.layers)
        padding = streaming[0].max_padding if streaming else 0
        mask = kwargs.get("attention_mask")
        if mask is not None:
            _check_mask(mask, inputs.shape[0], seen + inputs.shape[1])
            if inputs.shape[1] > 1 or padding >= seen:  # reads the device for chunks, never in a decode step
                padding = _left_padding(mask)
        elif padding and seen:
            raise ModelError("the cache holds padded rows: give the attention_mask [B, tokens seen + new] again")
        columns = _positions(mask if padding else None, inputs, seen)
        positions = columns[:, columns.shape[1] - inputs.shape[1] :]
        for layer in streaming:
            layer.receive(positions, padding)
        kwargs[NAME] = Attention(
            self.plan,
            None if cache is None else cache.layers,
            full_attention,
            now=positions,
            columns=columns if padding else None,
            from_start=seen == 0 and padding == 0,
        )

    def _fit(self, cache: Any, config: Any) -> None:
        if not isinstance(cache, Cache) or getattr(cache, "offloading", False):
            raise CacheError(f"a plan needs a dynamic, not offloaded cache, got {type(cache).__name__}")
        if streaming_parts(cache.layers):
            self._check_ours(cache)
        elif cache.get_seq_length() == 0:
            self._install(cache, config.num_hidden_layers)
        elif self.plan.streams:
            raise CacheError(
                "the cache was filled without this plan, so its streaming layers hold too much and in another form; "
                "start with an empty cache"
            )

    def _check_ours(self, cache: Cache) -> None:
        layers = range(self.plan.num_layers)
        ours = [full_groups_of(layer) for layer in cache.layers]
        kept = [(part.window, part.spare) for part in streaming_parts(cache.layers)]
        windows = [window for window in map(self.plan.window, layers) if window is not None]
        if ours != [self.plan.full_groups(i) for i in layers] or kept != [(window, self.spare) for window in windows]:
            raise CacheError("the cache was filled under another plan or spare; start with an empty cache")

    def _install(self, cache: Any, num_layers: int) -> None:
        kinds = {type(layer) for layer in cache.layers}
        if kinds - {DynamicLayer} or (not kinds and cache.layer_class_to_replicate is not DynamicLayer):
            raise CacheError(
                f"a plan needs a dynamic cache, got {type(cache).__name__} of "
                f"{', '.join(sorted(k.__name__ for k in kinds)) or 'other'} layers; leave cache_implementation unset"
            )
        cache.layers[:] = [new_layer(self.plan, i, self.spare, DynamicLayer) for i in range(num_layers)]


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
    """Positions counted from each row's first real token: [B, Tq]; with a mask [B, T] of all, -1 for padding."""
    columns = torch.arange(seen if mask is None else 0, seen + inputs.shape[1], device=inputs.device)
    if mask is None:
        return columns.expand(inputs.shape[0], -1)
    return (columns - (mask == 0).sum(dim=-1, keepdim=True)).clamp(min=-1)
