"""What a config.json says of a decoder whose sizes can be counted; everything else is refused by name."""

from collections.abc import Mapping
from typing import Any

from zigzag.reference.checks import as_whole
from zigzag.reference.errors import ModelError

# Each kind: whose sizes it has, and what transformers takes where the configuration says nothing.
_QWEN = {"num_key_value_heads": 32, "sliding_window": 4096, "use_sliding_window": False}
_QWEN_VL = _QWEN | {"num_key_value_heads": 8, "head_dim": None}
_GLM = {"num_key_value_heads": 8, "attention_bias": False, "use_qk_norm": False}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "glm4_moe": ("glm4_moe", _GLM),
    "llama": ("llama", {}),
    "mistral": ("mistral", {"num_key_value_heads": 8, "sliding_window": 4096}),
    "qwen2": ("qwen2", _QWEN),
    "qwen3": ("qwen3", _QWEN | {"head_dim": 128}),
}
_TEXT_KINDS: dict[str, tuple[str, dict[str, Any]]] = {  # text parts that have a kind of their own
    "glm4v_moe_text": ("glm4_moe", _GLM | {"attention_bias": True}),
    "qwen2_vl_text": ("qwen2", _QWEN_VL),
    "qwen2_5_vl_text": ("qwen2", _QWEN_VL),
    "qwen3_vl_text": ("qwen3", _QWEN | {"head_dim": 128}),
}
VISION_KINDS = (
    "glm4v_moe", "internvl", "llava", "llava_next", "llava_onevision", "mistral3", "qwen2_5_vl", "qwen2_vl", "qwen3_vl",
)  # fmt: skip
_FLAT = ("qwen2_5_vl", "qwen2_vl")  # whose older files have the text part's keys beside the vision part


def decoder_of(config: Mapping[str, Any], name: str) -> tuple[str, dict[str, Any], str]:
    """(kind, the decoder's configuration with transformers' defaults, name): of a vision-language model its text part.

    kind: one of `KINDS`

    Raises ModelError for any other kind, and for attention that is not full in every layer.
    """
    if not isinstance(config, Mapping):
        raise ModelError(f"{name}: a configuration must be an object, got {type(config).__name__}")
    known = KINDS
    if config.get("model_type") in VISION_KINDS:
        config, name, known = _text_part(config, name), f"{name} (text part)", KINDS | _TEXT_KINDS
    found = config.get("model_type")
    kind, defaults = known.get(found, ("", {})) if isinstance(found, str) else ("", {})
    config = defaults | dict(config)
    _check_attention(kind, config, name)
    if not kind:
        usable = ", ".join((*KINDS, *VISION_KINDS))
        raise ModelError(f"{name}: model_type must be one of {usable}, got {found!r}; no other kind is counted")
    return kind, config, name


def _text_part(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    outer: Any = config["model_type"]
    text = config.get("text_config")
    if text is None and outer in _FLAT:
        text = {**config, "model_type": f"{outer}_text"}
    if not isinstance(text, Mapping):
        raise ModelError(f"{name}: text_config must be an object, got {text!r}; give a whole config.json")
    if outer == "glm4v_moe":
        text = {**text, "use_qk_norm": False}  # it has none, whatever its file says
    if outer in _FLAT:
        text = {**text, "head_dim": None}  # likewise
    # Old files say it inside, new ones outside, and engines have believed the wrong one.
    tied = {str(part["tie_word_embeddings"]) for part in (config, text) if "tie_word_embeddings" in part}
    if len(tied) != 1:
        found = "both" if tied else "nothing"
        raise ModelError(
            f"{name}: tie_word_embeddings must be said once, or alike, in the configuration and its text_config, got "
            f"{found}; write it down: true if embedding and head are one matrix"
        )
    return {**text, "tie_word_embeddings": {**text, **config}["tie_word_embeddings"]}


def _check_attention(kind: str, config: Mapping[str, Any], name: str) -> None:
    """ModelError unless every layer's keys and values are those of grouped-query attention without a window."""
    if config.get("kv_lora_rank") is not None:
        rank, rope = as_whole(config["kv_lora_rank"]), as_whole(config.get("qk_rope_head_dim"))
        held = f", here {rank + rope}" if rank is not None and rope is not None else ""
        raise ModelError(
            f"{name}: multi-head latent attention is not counted. Of its KV cache, where the latent is stored, as by "
            f"transformers and vLLM, a token takes kv_lora_rank + qk_rope_head_dim numbers a layer{held}, whatever "
            f"the number of heads"
        )
    types = config.get("layer_types")
    if types is not None and not isinstance(types, list):
        raise ModelError(f"{name}: layer_types must be a list of names, got {types!r}")
    if other := sorted({str(each) for each in types or () if each != "full_attention"}):
        raise ModelError(
            f"{name}: only layers of full attention are counted, got {', '.join(other)} too; what a plan would need "
            f"cannot be said"
        )
    if kind and (types is None or kind == "mistral") and _has_window(kind, config, name):  # Mistral's looks at no types
        raise ModelError(
            f"{name}: a model with attention windows of its own (sliding_window = {config['sliding_window']}) is not "
            f"counted; give sliding_window = null if it is run without"
        )


def _has_window(kind: str, config: Mapping[str, Any], name: str) -> bool:
    """Whether any layer has a window, as transformers reads the keys; 0 is no window."""
    window = config.get("sliding_window")
    if window is None:
        return False
    size = as_whole(window)
    if size is None or size < 0:
        raise ModelError(f"{name}: sliding_window must be a whole number of tokens or null, got {window!r}")
    if kind.startswith("qwen"):
        used = config["use_sliding_window"]
        if not isinstance(used, bool):
            raise ModelError(f"{name}: use_sliding_window must be true or false, got {used!r}")
        first, layers = as_whole(config.get("max_window_layers")), as_whole(config.get("num_hidden_layers"))
        above = first is not None and layers is not None and first >= layers  # layers from there on have the window
        return used and size > 0 and not above
    return size > 0
