"""The numbers of a GLM-4.5 architecture, read from a config.json dictionary in its old and its new spelling."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from zigzag.reference.checks import as_real, as_whole
from zigzag.reference.errors import ModelError

ALIASES = {"n_routed_experts": "num_local_experts", "num_nextn_predict_layers": "num_mtp_layers"}
IN_ROPE_PARAMETERS = ("rope_theta", "partial_rotary_factor")  # new spelling; the old one has them at the top
ONLY = {  # what the forward is defined for; a key that is absent means this value
    "model_type": ("glm4_moe",),
    "hidden_act": ("silu",),
    "scoring_func": ("sigmoid",),
    "topk_method": ("noaux_tc",),
}
MAY_BE_ZERO = ("first_k_dense_replace", "num_nextn_predict_layers")


@dataclass(frozen=True, kw_only=True)
class GlmConfig:
    """Sizes and switches, named as in config.json.

    The first `first_k_dense_replace` layers are dense, the others have experts. `num_nextn_predict_layers`: MTP layers
    that follow the `num_hidden_layers`.

    Raises ModelError for a value of the wrong type or out of range.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    first_k_dense_replace: int
    intermediate_size: int
    moe_intermediate_size: int
    n_routed_experts: int
    n_shared_experts: int
    num_experts_per_tok: int
    n_group: int
    topk_group: int
    norm_topk_prob: bool
    routed_scaling_factor: float
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    use_qk_norm: bool
    attention_bias: bool
    rope_theta: float
    partial_rotary_factor: float
    rms_norm_eps: float
    tie_word_embeddings: bool = False
    num_nextn_predict_layers: int = 0

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "GlmConfig":
        """The configuration in a config.json dictionary.

        Raises ModelError for missing keys, all of them named, and for an architecture that is not this one.
        """
        for key, usable in ONLY.items():
            if config.get(key, usable[0]) not in usable:
                raise ModelError(f"GlmConfig: {key} must be {' or '.join(usable)}, got {config[key]!r}")
        _check_plain_rope(config)
        found = {field.name: _find(config, field.name) for field in fields(cls)}
        found = {name: value for name, value in found.items() if value is not None}
        if missing := [f.name for f in fields(cls) if f.name not in found and f.default is MISSING]:
            raise ModelError(f"GlmConfig: missing keys: {', '.join(missing)}; give GLM-4.5's config.json")
        return cls(**found)

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _plain(field.name, getattr(self, field.name), field.type))
        _check_divides("num_key_value_heads", self.num_key_value_heads, "num_attention_heads", self.num_attention_heads)
        _check_divides("n_group", self.n_group, "n_routed_experts", self.n_routed_experts)
        _check_at_most("topk_group", self.topk_group, "n_group", self.n_group)
        usable = self.topk_group * (self.n_routed_experts // self.n_group)
        _check_at_most("num_experts_per_tok", self.num_experts_per_tok, "the experts in topk_group groups", usable)
        if not 0 < self.partial_rotary_factor <= 1 or self.rotary_dim % 2:
            raise ModelError(
                f"GlmConfig: partial_rotary_factor must be in (0, 1] and rotate an even number of the head_dim = "
                f"{self.head_dim} dimensions, got {self.partial_rotary_factor}"
            )

    @property
    def rotary_dim(self) -> int:
        """How many of a head's dimensions, from its first, are rotated."""
        return int(self.head_dim * self.partial_rotary_factor)

    def is_dense(self, layer: int) -> bool:
        """Whether the layer has one feed-forward network instead of experts; an MTP layer never does."""
        return layer < min(self.first_k_dense_replace, self.num_hidden_layers)


def _find(config: Mapping[str, Any], name: str) -> Any:
    """The value under any of its spellings, or None."""
    rope = config.get("rope_parameters") or {}
    value = config.get(name, config.get(ALIASES.get(name, "")))
    if value is None and name in IN_ROPE_PARAMETERS:
        value = rope.get(name)
    if value is None and name == "head_dim":
        width, heads = as_whole(config.get("hidden_size")), as_whole(config.get("num_attention_heads"))
        if width is not None and heads is not None and heads > 0:
            value = width // heads  # what transformers takes
    return value


def _check_plain_rope(config: Mapping[str, Any]) -> None:
    for key in ("rope_scaling", "rope_parameters"):
        rope = config.get(key) or {}
        if not isinstance(rope, Mapping):
            raise ModelError(f"GlmConfig: {key} must be an object or null, got {rope!r}")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise ModelError(f"GlmConfig: {key} must be of type 'default', got {kind!r}; scaled RoPE is not supported")


def _plain(name: str, value: Any, kind: Any) -> Any:
    """The value as a plain bool, int or float."""
    plain: Any = None
    if kind is bool:
        plain = value if isinstance(value, bool) else None
    elif kind is int:
        whole = as_whole(value)
        plain = None if whole is None or whole < (0 if name in MAY_BE_ZERO else 1) else whole
    elif (real := as_real(value)) is not None and math.isfinite(real) and real > 0:
        plain = real
    if plain is None:
        needed = {bool: "true or false", int: "a whole number above 0"}.get(kind, "a finite number above 0")
        needed = "a whole number, 0 or more" if name in MAY_BE_ZERO else needed
        raise ModelError(f"GlmConfig: {name} must be {needed}, got {value!r}")
    return plain


def _check_divides(name: str, count: int, whole_name: str, whole: int) -> None:
    if whole % count:
        raise ModelError(f"GlmConfig: {name} must divide {whole_name} = {whole}, got {count}")


def _check_at_most(name: str, count: int, limit_name: str, limit: int) -> None:
    if count > limit:
        raise ModelError(f"GlmConfig: {name} must be at most {limit_name} = {limit}, got {count}")
