"""What the layers of a model are, and what each does under a plan.

A plan speaks of the layers with full attention, in their order: layer i of a plan is the i-th of them. Layers with
windows of their own stay as they are, and so does what is no attention at all.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from zigzag.plans.heads import Plan
from zigzag.plans.window import Window
from zigzag.reference.errors import ModelError, PlanError
from zigzag.running.shards import share_of_heads

Groups = bool | tuple[bool, ...]


@dataclass(frozen=True)
class ModelLayers:
    """The layers of a decoder by what they are.

    full: indices of the layers with full causal attention
    windows: [L] of each layer its own window, None for a layer without one
    others: {index: kind} of layers that are neither, as "linear_attention"
    num_kv_heads, head_size: G and D of the full layers
    is_latent: whether they cache a latent instead of keys and values of G heads (multi-head latent attention)
    share: (i, n) where this process computes the i-th of n equal runs of the KV heads, and others the rest
    """

    name: str
    full: tuple[int, ...]
    windows: tuple[Window | None, ...]
    others: dict[int, str]
    num_kv_heads: int
    head_size: int
    is_latent: bool
    share: tuple[int, int] = (0, 1)

    @property
    def heads_here(self) -> slice:
        """Which of the KV heads this process computes."""
        each = self.num_kv_heads // self.share[1]
        return slice(self.share[0] * each, (self.share[0] + 1) * each)

    @property
    def num_layers(self) -> int:
        """L, those counted of which a plan does not speak."""
        return len(self.windows)

    @property
    def own_windows(self) -> tuple[int, ...]:
        """Tokens that each layer with a window of its own sees."""
        return tuple(window.size for window in self.windows if window is not None)


@dataclass(frozen=True)
class Placement:
    """A plan on a model's layers.

    windows: [L] of each layer the window of its streaming heads, None where none streams
    groups: [L] which of this process's KV heads are full: all (True), none (False), or [G] of them
    """

    windows: tuple[Window | None, ...]
    groups: tuple[Groups, ...]


def place(plan: Plan | None, layers: ModelLayers, *, own_windows: bool) -> Placement:
    """What each layer does under `plan`, None for full attention.

    own_windows: layers with windows of their own stream in them, as a runner has it; else they are as full ones, whose
        masks are the model's business
    """
    windows = list(layers.windows if own_windows else [None] * layers.num_layers)
    groups: list[Groups] = [window is None for window in windows]
    if plan is not None:
        for own, index in enumerate(layers.full):
            windows[index], groups[index] = _here(plan.window(own), plan.full_groups(own), layers.heads_here)
    return Placement(tuple(windows), tuple(groups))


def _here(window: Window | None, groups: Groups, heads: slice) -> tuple[Window | None, Groups]:
    """What a layer does in this process, which has these KV heads of it."""
    if isinstance(groups, bool):
        return window, groups
    mine = tuple(groups[heads])
    if len(mine) == len(groups) or len(set(mine)) > 1:
        return window, mine
    return (None, True) if mine[0] else (window, False)


def decoder_of(model: Any) -> nn.Module:
    """The layers of a transformers model without its head; ModelError for what is none, as a DataParallel."""
    if not hasattr(model, "config") or not hasattr(model, "get_decoder"):
        inner = "; give its .module" if hasattr(getattr(model, "module", None), "get_decoder") else ""
        raise ModelError(f"a transformers decoder model is needed, got {type(model).__name__}{inner}")
    decoder: nn.Module = model.get_decoder()
    return decoder


def layers_of(model: Any) -> ModelLayers:
    """The layers of a transformers decoder; ModelError, with the reason, for one that cannot run plans."""
    decoder_of(model)
    config, name = model.config.get_text_config(decoder=True), type(model).__name__
    if reason := _unfit(config):
        raise ModelError(f"{name} {reason}")
    if not getattr(model, "_supports_default_dynamic_cache", lambda: True)():
        raise ModelError(f"{name} takes only a cache of its own kind, in which a plan's layers have no place")
    cache: list[Any] = DynamicCache(config=config).layers[: config.num_hidden_layers]
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * len(cache)
    full, windows, others = [], [], {}
    for index, (layer, kind) in enumerate(zip(cache, kinds, strict=False)):
        windows.append(_own_window(name, layer, kind))
        if type(layer) is DynamicLayer:
            full.append(index)
        elif windows[-1] is None:
            others[index] = kind
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    is_latent, share = bool(getattr(config, "kv_lora_rank", None)), share_of_heads(model)
    heads = config.num_key_value_heads
    return ModelLayers(name, tuple(full), tuple(windows), others, heads, size, is_latent, share)


def check_plan(op: str, plan: Plan | None, layers: ModelLayers) -> None:
    """PlanError unless the plan is for a model with such layers, ModelError if it could be for none."""
    if plan is None:
        return
    if plan.streams or not layers.full:
        check_may_stream(op, layers)
    if plan.num_layers != len(layers.full):
        rest = layers.num_layers - len(layers.full)
        of_which = f" with full attention (and {rest} others, of which a plan does not speak)" if rest else ""
        raise PlanError(
            f"{op}: the plan is for {plan.num_layers} layers, the model has {len(layers.full)}{of_which}; "
            f"make a plan for this model"
        )
    if plan.num_kv_heads not in (None, layers.num_kv_heads):
        raise PlanError(
            f"{op}: the plan was made for {plan.num_kv_heads} KV heads a layer, the model has "
            f"{layers.num_kv_heads}; make a plan for this model"
        )


def check_may_stream(op: str, layers: ModelLayers) -> None:
    """ModelError for a model of which no layer could stream: there is nothing to score or to plan."""
    if layers.is_latent:
        raise ModelError(
            f"{op}: {layers.name} has multi-head latent attention (kv_lora_rank), whose cache no plan can cut; "
            f"run it without a plan, or plan a model with grouped-query attention"
        )
    if not layers.full:
        what = sorted({f"a window of {w.size}" for w in layers.windows if w is not None} | set(layers.others.values()))
        raise ModelError(
            f"{op}: {layers.name} has no layer with full attention ({', '.join(what)}), so there is nothing for a plan "
            f"to decide; run it without one"
        )


def _own_window(name: str, layer: Any, kind: str) -> Window | None:
    if not isinstance(layer, DynamicSlidingWindowLayer) or kind == "chunked_attention":
        return None
    if layer.sliding_window < 1:
        raise ModelError(
            f"{name} has sliding_window={layer.sliding_window}, which transformers takes for a window that sees "
            f"nothing; set model.config.sliding_window = None if there is none"
        )
    return Window(0, int(layer.sliding_window))


def _unfit(config: Any) -> str:
    """Why plans cannot be run on a decoder of this configuration; empty if they can."""
    if getattr(config, "num_key_value_heads", None) is None:
        return "has no num_key_value_heads: grouped-query attention is needed"
    if getattr(config, "attn_logit_softcapping", None):
        return f"caps its attention scores (attn_logit_softcapping={config.attn_logit_softcapping}), which no op does"
    if getattr(config, "use_bidirectional_attention", False) is True:
        return "attends in both directions (use_bidirectional_attention): causal attention is needed"
    if getattr(config, "num_kv_shared_layers", 0) or "reuse" in (getattr(config, "kv_sharing_modes", None) or ()):
        return "has layers that use the keys of others (num_kv_shared_layers): a plan would change both"
    sizes = {
        (each.num_key_value_heads, getattr(each, "head_dim", None))
        for each in getattr(config, "per_layer_config", ())
        if getattr(each, "num_key_value_heads", None) is not None
    }
    if getattr(config, "global_head_dim", None) or getattr(config, "num_global_key_value_heads", None):
        sizes |= {(config.num_global_key_value_heads, config.global_head_dim)}
    if len(sizes) > 1:
        return f"has layers of different heads, (num_key_value_heads, head_dim) = {sorted(map(str, sizes))}"
    return ""
