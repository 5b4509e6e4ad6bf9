"""Running a model under a plan: `attach`, `detach`, and what its cache really holds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from zigzag.caches.mixed import full_groups_of, held, new_layer, streaming_parts
from zigzag.defaults import SPARE
from zigzag.models.decoder import Decoder
from zigzag.plans.heads import Plan
from zigzag.plans.opened import opened
from zigzag.reference.checks import check_count
from zigzag.reference.errors import CacheError, ModelError
from zigzag.running.attention import FEW_QUERIES, Attention
from zigzag.running.interception import (
    ATTACHMENT,
    NAME,
    Interception,
    attachment_of,
    check_keeps_a_cache,
    full_attention,
    is_checkpointing,
)
from zigzag.running.model_layers import ModelLayers, check_may_stream, check_plan, layers_of, place

Model = TypeVar("Model", bound=Decoder)


def attach(model: Model, plan: Plan | str | Path, *, spare: int = SPARE) -> Model:
    """Make `model` run under `plan`: streaming layers see, and keep, only sink + recent tokens.

    Afterwards `model(...)` and `model.generate(...)` work as before, with one-shot or chunked prefill,
    left-padded batches and prompt-lookup decoding. A streaming layer's cache holds at most
    sink + recent + spare slots a row between forwards. A plan that is already attached is replaced.

    model: a transformers decoder with grouped-query attention; docs/models.md says which.
    plan: a LayerPlan, or a HeadPlan (each mixed layer then keeps two caches), for the model's layers with full
        attention and its KV heads, or the file of one; layers with windows of their own stay as they are.
    spare: slots beyond the window; at most so many tokens can be rolled back (rejected drafts).
    return: the model itself

    Raises PlanError if the plan is for another model, ModelError if the model cannot run plans.

    Full layers run transformers' SDPA attention, streaming layers `zigzag.ops.attention`; layers that are both run the
    two for a prompt and `zigzag.ops.mixed_attention` for few tokens.
    """
    layers, plan = layers_of(model), opened(plan)
    spare = check_count("attach", "spare", spare, 0)
    check_plan("attach", plan, layers)
    detach(model)
    _Attachment(model, plan, spare, layers)
    return model


def detach(model: Model) -> Model:
    """Undo `attach`, by any handle of the model; does nothing to a model without a plan.

    Caches made under the plan cannot be used after. Raises ModelError while `zigzag.generate` runs the model.
    """
    attachment = attachment_of(model)
    if attachment is not None:
        attachment.remove()
    return model


def cache_bytes(cache: Cache) -> int:
    """Bytes of memory that the cache's keys and values really hold, counted on their storages."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held(cache.layers)}.values())


def cache_lengths(cache: Cache) -> list[int]:
    """Slots a row that each layer stores; of a head-mixed one, those of its full heads; 0 where no keys are kept."""
    keys = [getattr(layer, "keys", None) for layer in cache.layers]
    return [0 if k is None else k.shape[-2] for k in keys]


class KvSize(TypedDict):
    """What a model adds to the options of `LayerPlan.kv_bytes`."""

    head_size: int
    num_kv_heads: int
    itemsize: int
    own_windows: Sequence[int]


def kv_size(model: Decoder) -> KvSize:
    """head_size, num_kv_heads, itemsize and own_windows of a model, as `LayerPlan.kv_bytes` takes them.

    Raises ModelError for a model that no plan could be for.
    """
    layers = layers_of(model)
    check_may_stream("kv_size", layers)
    return {
        "head_size": layers.head_size,
        "num_kv_heads": layers.num_kv_heads,
        "itemsize": model.dtype.itemsize,
        "own_windows": layers.own_windows,
    }


class _Attachment:
    def __init__(self, model: Decoder, plan: Plan, spare: int, layers: ModelLayers) -> None:
        self.plan, self.spare, self.layers = plan, spare, layers
        self.placement = place(plan, layers, own_windows=False)
        self.interception = Interception(model, self._prepare, "runs a plan")
        setattr(model.get_decoder(), ATTACHMENT, self)

    def remove(self) -> None:
        self.interception.remove()
        if getattr(self.interception.decoder, ATTACHMENT, None) is self:  # else another thread was first
            delattr(self.interception.decoder, ATTACHMENT)

    def _prepare(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before each forward: the plan's layers into an empty cache, the tokens' positions into the layers."""
        inputs = next(x for x in (*args, kwargs.get("input_ids"), kwargs.get("inputs_embeds")) if x is not None)
        cache, use_cache = kwargs.get("past_key_values"), kwargs.get("use_cache")
        if inputs.shape[1] == 0:
            raise ModelError(
                "there is no token to compute: the cache holds all that were given, or more; give it at least one new "
                "one, or start with an empty cache (generate takes the inputs_embeds of the whole text)"
            )
        if cache is not None:
            _check_kind(cache)
            check_keeps_a_cache(decoder)
        elif is_checkpointing(decoder):
            use_cache = kwargs["use_cache"] = False
        mask = kwargs.get("attention_mask")
        seen = 0 if cache is None or not len(cache.layers) else cache.get_seq_length()
        if mask is not None:
            _check_mask(mask, inputs.shape[0], seen + inputs.shape[1])
        if cache is None and (decoder.config.use_cache if use_cache is None else use_cache):
            kwargs["past_key_values"] = cache = DynamicCache(config=decoder.config)
        if cache is not None:
            self._fit(cache, inputs.shape[0], seen)
        streaming = [] if cache is None else streaming_parts(cache.layers)
        padding = streaming[0].max_padding if streaming else 0
        if mask is not None:
            if inputs.shape[1] > 1 or padding >= seen:  # reads the device for chunks, never in a decode step
                padding = _left_padding(mask)
        elif padding and seen:
            raise ModelError("the cache holds padded rows: give the attention_mask [B, tokens seen + new] again")
        columns = _positions(mask if padding else None, inputs, seen)
        positions = columns[:, columns.shape[1] - inputs.shape[1] :]
        if streaming or inputs.shape[1] > 1:  # without a window nobody counts padding in a decode step
            _check_positions(kwargs.get("position_ids"), positions, seen)
        in_order = padding == 0 and (seen == 0 or inputs.shape[1] > FEW_QUERIES)
        for layer in streaming:
            layer.receive(positions, padding, in_order=in_order)
        kwargs[NAME] = Attention(
            self.placement,
            None if cache is None else cache.layers,
            full_attention,
            now=positions,
            columns=columns if padding else None,
            in_order=in_order,
        )

    def _fit(self, cache: Cache, rows: int, seen: int) -> None:
        filled = held(cache.layers)
        if filled and len(filled[0]) != rows:
            raise CacheError(
                f"the cache holds {len(filled[0])} rows, the tokens come in {rows}: start with an empty cache, or call "
                f"its batch_repeat_interleave or batch_select_indices"
            )
        if streaming_parts(cache.layers):
            self._check_ours(cache)
        elif seen == 0:
            self._install(cache)
        elif self.plan.streams:
            raise CacheError(
                "the cache was filled without this plan, so its streaming layers hold too much and in another form; "
                "start with an empty cache"
            )

    def _check_ours(self, cache: Cache) -> None:
        count = len(cache.layers)
        ours = tuple(
            full_groups_of(layer) if index in self.layers.full else True for index, layer in enumerate(cache.layers)
        )
        kept = [(part.window, part.spare) for part in streaming_parts(cache.layers)]
        windows = [window for window in self.placement.windows[:count] if window is not None]
        if ours != self.placement.groups[:count] or kept != [(window, self.spare) for window in windows]:
            raise CacheError("the cache was filled under another plan or spare; start with an empty cache")
        lengths = {layer.get_seq_length() for layer in cache.layers if hasattr(layer, "get_seq_length")}
        if len(lengths) > 1:
            raise CacheError(
                f"the layers of the cache hold different numbers of tokens ({sorted(lengths)}), since a forward or a "
                f"crop broke off: start with an empty cache, or call its reset()"
            )

    def _install(self, cache: Any) -> None:
        """The plan's layers in the places of the full ones; the others stay as transformers has them."""
        fresh = DynamicCache(config=self.interception.decoder.config).layers
        layers = cache.layers or fresh
        if not cache.layers and cache.layer_class_to_replicate is not DynamicLayer:
            raise _wrong_layers(cache, [])
        if [type(layer) for layer in layers] != [type(layer) for layer in fresh]:
            raise _wrong_layers(cache, layers)
        poses = bool(self.layers.own_windows)
        for index in (i for i in self.layers.full if i < len(layers)):  # a draft may leave the model early
            groups, window = self.placement.groups[index], self.placement.windows[index]
            layers[index] = new_layer(groups, window, self.spare, DynamicLayer, poses_as_full=poses)
        cache.layers[:] = layers


def _wrong_layers(cache: Cache, layers: list[Any]) -> CacheError:
    kinds = ", ".join(sorted({type(layer).__name__ for layer in layers})) or "other"
    return CacheError(
        f"a plan needs the dynamic cache that transformers makes for this model, got {type(cache).__name__} of {kinds} "
        f"layers; leave cache_implementation unset, or give DynamicCache(config=model.config)"
    )


def _check_kind(cache: Any) -> None:
    if not isinstance(cache, Cache) or getattr(cache, "offloading", False):
        raise CacheError(f"a plan needs a dynamic, not offloaded cache, got {type(cache).__name__}")


def _check_mask(mask: Any, batch: int, length: int) -> None:
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        shape = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ModelError(
            f"under a plan the attention mask must be [B, tokens seen + new] of 0 and 1, got {shape}; a model that "
            f"makes masks before its decoder runs (for images) can run text through zigzag.generate"
        )
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


def _check_positions(given: Any, positions: Tensor, seen: int) -> None:
    """ModelError for positions that are not those of each row's tokens; waits for no device in a decode step.

    given: position_ids [1 or B, Tq]; with several axes (images) they are the model's business
    """
    if given is None or given.dim() != 2 or (positions.shape[1] == 1 and given.device.type != "cpu"):
        return
    real = positions >= 0
    if not bool(((given.to(positions.device) != positions) & real).any()):
        return
    if seen:
        raise ModelError(
            f"under a plan position_ids must go on where the cache ends, after {seen} tokens: it was given with a text "
            f"that does not continue those; crop it to what both have in common, or start with an empty cache"
        )
    raise ModelError(
        "under a plan position_ids must count each row's tokens, 0, 1, 2, ...: where they restart a row holds "
        "several texts (packed), which streaming layers cannot keep apart; give each text its own row"
    )
