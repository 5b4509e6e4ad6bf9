"""A decoder's sizes from its configuration alone: parameters, what a token needs of them, KV bytes, prefill FLOPs.

Dense decoders of Llama's kind and GLM-4.5's experts, alone or in a vision-language model (`configuration.py`). What is
assumed is written on docs/glm-sizes.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from zigzag.models import tiny_glm
from zigzag.models.checkpoint import read_config
from zigzag.plans.layers import LayerPlan, kinds_of
from zigzag.plans.window import num_streaming
from zigzag.reference.checks import as_whole, check_count
from zigzag.reference.errors import ArgumentError, ModelError
from zigzag.sizes.configuration import decoder_of

SINK, RECENT = 128, 896  # the window of streaming layers, if none is given

_GLM = {
    "model_type": "glm4_moe",
    "num_attention_heads": 96,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "attention_bias": True,
    "vocab_size": 151552,
    "tie_word_embeddings": False,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "num_nextn_predict_layers": 1,
}
BUILT_IN: dict[str, dict[str, Any]] = {
    "GLM-4.5": _GLM
    | {
        "hidden_size": 5120,
        "num_hidden_layers": 92,
        "first_k_dense_replace": 3,
        "intermediate_size": 12288,
        "moe_intermediate_size": 1536,
        "n_routed_experts": 160,
        "use_qk_norm": True,
    },
    "GLM-4.5-Air": _GLM
    | {
        "hidden_size": 4096,
        "num_hidden_layers": 46,
        "first_k_dense_replace": 1,
        "intermediate_size": 10944,
        "moe_intermediate_size": 1408,
        "n_routed_experts": 128,
        "use_qk_norm": False,
    },
}
_NEW_NAMES = {"n_routed_experts": "num_local_experts", "num_nextn_predict_layers": "num_mtp_layers"}
_SIZES = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "vocab_size": "vocab_size",
}
_EXPERT_SIZES = {
    "num_dense_layers": "first_k_dense_replace",
    "num_experts": "n_routed_experts",
    "experts_per_token": "num_experts_per_tok",
    "num_shared_experts": "n_shared_experts",
    "expert_size": "moe_intermediate_size",
}
_MAY_BE_ZERO = (*_EXPERT_SIZES, "num_mtp_layers")


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The sizes of a decoder. The first `num_dense_layers` layers have one feed-forward network, the others experts.

    query_bias: biases of q, k and v; output_bias: of o; feed_forward_bias: of gate, up and down
    qk_norm: a norm of queries and one of keys, each shared by the heads
    tied: embedding and head are one matrix
    num_mtp_layers: expert layers behind the last one that draft (multi-token prediction)

    Raises ModelError for sizes that are not whole numbers in range or do not fit each other.
    """

    name: str
    hidden_size: int
    num_layers: int
    num_dense_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    intermediate_size: int
    vocab_size: int
    query_bias: bool = False
    output_bias: bool = False
    feed_forward_bias: bool = False
    qk_norm: bool = False
    tied: bool = False
    num_experts: int = 0
    experts_per_token: int = 0
    num_shared_experts: int = 0
    expert_size: int = 0
    num_mtp_layers: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name in _MAY_BE_ZERO else 1
            if field.type is int:
                whole = as_whole(value)
                if whole is None or whole < least:
                    raise ModelError(
                        f"{self.name}: {field.name} must be a whole number of at least {least}, got {value!r}"
                    )
                object.__setattr__(self, field.name, whole)
            if field.type is bool and not isinstance(value, bool):
                raise ModelError(f"{self.name}: {field.name} must be true or false, got {value!r}")
        if self.num_heads % self.num_kv_heads:
            raise ModelError(f"{self.name}: {self.num_heads} heads are no multiple of {self.num_kv_heads} KV heads")
        usable = 1 <= self.experts_per_token <= self.num_experts and self.expert_size > 0
        needed = self.num_dense_layers < self.num_layers or self.num_mtp_layers > 0
        if self.num_dense_layers > self.num_layers or (needed and not usable):
            raise ModelError(
                f"{self.name}: {self.num_layers} layers with {self.num_dense_layers} dense ones, {self.num_experts} "
                f"experts of size {self.expert_size}, {self.experts_per_token} of them for a token, do not fit together"
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any], name: str = "model") -> "ModelShape":
        """From what config.json says, in its old or new spelling; of a vision-language model the text part alone.

        Raises ModelError that names missing keys, and kinds of models and of attention that are not counted.
        """
        kind, config, name = decoder_of(config, name)
        experts = kind == "glm4_moe"
        wanted = _SIZES | (_EXPERT_SIZES if experts else {})
        sizes = {size: _find(config, key) for size, key in wanted.items()}
        if missing := [wanted[size] for size, value in sizes.items() if value is None]:
            raise ModelError(f"{name}: the configuration lacks {', '.join(missing)}; give a whole config.json")
        heads, bias = sizes["num_heads"], config.get("attention_bias", False)
        per_head: Any = config.get("head_dim")
        width, count = as_whole(sizes["hidden_size"]), as_whole(heads)
        if per_head is None and width is not None and count is not None:
            per_head = width // max(count, 1)  # what transformers takes
        kv_heads = config.get("num_key_value_heads")
        return cls(
            name=name,
            **{"num_dense_layers": sizes["num_layers"], **sizes},
            head_size=per_head,
            num_kv_heads=heads if kv_heads is None else kv_heads,
            query_bias={"qwen2": True, "mistral": False}.get(kind, bias),
            output_bias=bias if kind in ("llama", "qwen3") else False,
            feed_forward_bias=config.get("mlp_bias", False) if kind == "llama" else False,
            qk_norm=kind == "qwen3" or (config.get("use_qk_norm", False) if experts else False),
            tied=config.get("tie_word_embeddings", False),
            num_mtp_layers=(_find(config, "num_nextn_predict_layers") or 0) if experts else 0,
        )

    @property
    def num_expert_layers(self) -> int:
        """Layers with experts, without MTP layers."""
        return self.num_layers - self.num_dense_layers

    # Parameters of one layer, or of one matrix.

    @property
    def query_output_parameters(self) -> int:
        """q and o of a layer, and the norms of queries and keys."""
        width = self.num_heads * self.head_size
        norms = 2 * self.head_size if self.qk_norm else 0
        biases = width * self.query_bias + self.hidden_size * self.output_bias
        return 2 * width * self.hidden_size + biases + norms

    @property
    def key_value_parameters(self) -> int:
        """k and v of a layer."""
        return 2 * self.num_kv_heads * self.head_size * (self.hidden_size + self.query_bias)

    @property
    def attention_parameters(self) -> int:
        """q, k, v and o of a layer, and the norms of queries and keys."""
        return self.query_output_parameters + self.key_value_parameters

    @property
    def feed_forward_parameters(self) -> int:
        """gate, up and down of a dense layer."""
        biases = (2 * self.intermediate_size + self.hidden_size) * self.feed_forward_bias
        return 3 * self.hidden_size * self.intermediate_size + biases

    @property
    def expert_parameters(self) -> int:
        """gate, up and down of one expert."""
        return 3 * self.hidden_size * self.expert_size

    @property
    def router_parameters(self) -> int:
        """Of an expert layer: a weight and a bias for each expert."""
        return self.num_experts * (self.hidden_size + 1)

    @property
    def norm_parameters(self) -> int:
        """The two norms of a layer."""
        return 2 * self.hidden_size

    @property
    def embedding_parameters(self) -> int:
        """The embedding; the head has as many."""
        return self.vocab_size * self.hidden_size

    @property
    def dense_layer_parameters(self) -> int:
        """A whole layer without experts."""
        return self.attention_parameters + self.feed_forward_parameters + self.norm_parameters

    @property
    def expert_layer_parameters(self) -> int:
        """A whole layer with experts."""
        experts = (self.num_experts + self.num_shared_experts) * self.expert_parameters
        return self.attention_parameters + experts + self.router_parameters + self.norm_parameters

    @property
    def mtp_block_parameters(self) -> int:
        """The MTP layers: an expert layer each, the projection of state and embedding, three norms."""
        extra = 2 * self.hidden_size**2 + 3 * self.hidden_size
        return self.num_mtp_layers * (self.expert_layer_parameters + extra)

    # Parameters of the model.

    def parameters(self) -> dict[str, int]:
        """Parameters by part, without MTP layers; their sum is `main_parameters`."""
        layers, experts = self.num_layers, self.num_expert_layers
        return {
            "embedding": self.embedding_parameters,
            "attention": layers * self.attention_parameters,
            "dense feed-forward": self.num_dense_layers * self.feed_forward_parameters,
            "routed experts": experts * self.num_experts * self.expert_parameters,
            "shared experts": experts * self.num_shared_experts * self.expert_parameters,
            "routers": experts * self.router_parameters,
            "norms": layers * self.norm_parameters + self.hidden_size,
            "head": 0 if self.tied else self.embedding_parameters,
        }

    @property
    def main_parameters(self) -> int:
        """All but the MTP layers."""
        return sum(self.parameters().values())

    @property
    def stored_parameters(self) -> int:
        """With the MTP layers, each with a copy of embedding and head: GLM-4.5's checkpoints have it, GLM-4.6's not."""
        return self.main_parameters + self.mtp_block_parameters + 2 * self.num_mtp_layers * self.embedding_parameters

    def active_parameters(self, *, head: bool = True) -> int:
        """Parameters that one token is multiplied with: without the embedding, with or without the head."""
        parts = self.parameters()
        idle = (self.num_experts - self.experts_per_token) * self.expert_parameters * self.num_expert_layers
        body = self.main_parameters - parts["embedding"] - parts["head"] - idle
        return body + (self.embedding_parameters if head else 0)

    def prefill_flops(self, plan: LayerPlan, context: int, batch: int = 1) -> int:
        """Multiplications and additions to read `context` tokens: 2 for each active parameter and token, attention's
        products (causal, only pairs that see each other), and the head for each row's last token."""
        context, batch = check_case(self, plan, context, batch)
        linear = 2 * context * self.active_parameters(head=False) + 2 * self.embedding_parameters * bool(context)
        pairs = sum(visible_pairs(plan, layer, context) for layer in range(self.num_layers))
        return batch * (linear + self.pair_flops * pairs)

    @property
    def pair_flops(self) -> int:
        """For one query and one key that it sees, in all heads of a layer: the score and the weighted value."""
        return 4 * self.num_heads * self.head_size

    def kv_bytes(self, plan: LayerPlan, context: int, batch: int = 1, itemsize: int = 2) -> int:
        """Bytes of keys and values in all layers but the MTP ones, without spare slots: engines have none."""
        context, batch = check_case(self, plan, context, batch)
        itemsize = check_count("sizes", "itemsize", itemsize)
        size: dict[str, Any] = {"head_size": self.head_size, "num_kv_heads": self.num_kv_heads, "itemsize": itemsize}
        return plan.kv_bytes(context, batch=batch, spare=0, **size)


def model_shape(source: str | Path) -> ModelShape:
    """The shape of a built-in model by name ("GLM-4.5", "GLM-4.5-Air"), or of a config.json or a folder with one.

    >>> model_shape("GLM-4.5-Air").main_parameters
    106852251264
    """
    if str(source) in BUILT_IN:
        return ModelShape.from_config(BUILT_IN[str(source)], str(source))
    source = tiny_glm.folder() if str(source) == tiny_glm.NAME else source
    path = Path(source) / "config.json" if Path(source).is_dir() else Path(source)
    if not path.is_file():
        names = ", ".join((*BUILT_IN, tiny_glm.NAME))
        raise ModelError(f"sizes: {names}, or a config.json is needed; there is no file {path.absolute()}")
    return ModelShape.from_config(
        read_config(path), path.parent.resolve().name if path.name == "config.json" else path.stem
    )


def streaming_plan(shape: ModelShape, share: float, sink: int = SINK, recent: int = RECENT) -> LayerPlan:
    """A plan in which as many layers stream as `make_plan` says; which ones does not matter for sizes."""
    full = shape.num_layers - num_streaming("sizes", shape.num_layers, share)
    kinds = kinds_of([layer < full for layer in range(shape.num_layers)])
    return LayerPlan(kinds, sink, recent, num_kv_heads=shape.num_kv_heads)


def visible_tokens(plan: LayerPlan, layer: int, context: int) -> int:
    """Keys that the newest of `context` tokens sees."""
    window = plan.window(layer)
    return context if window is None else min(context, window.size)


def visible_pairs(plan: LayerPlan, layer: int, context: int) -> int:
    """Pairs of a query and a key that it sees, over `context` tokens: the i-th sees min(i, what a layer shows)."""
    window = visible_tokens(plan, layer, context)
    return window * (window + 1) // 2 + (context - window) * window


def expected_experts(num_experts: int, experts_per_token: int, tokens: float) -> float:
    """Distinct experts that `tokens` tokens choose, if each chooses evenly and for itself: E (1 - (1 - k / E)^tokens).

    >>> [round(expected_experts(160, 8, n), 1) for n in (0, 1, 2, 4)]
    [0.0, 8.0, 15.6, 29.7]
    """
    return num_experts * (1 - (1 - experts_per_token / num_experts) ** tokens) if num_experts else 0.0


def check_case(shape: ModelShape, plan: LayerPlan, context: int, batch: int) -> tuple[int, int]:
    """Context and batch as plain ints; ArgumentError for a plan of another depth, or numbers out of range."""
    if plan.num_layers != shape.num_layers:
        raise ArgumentError(f"sizes: {shape.name} has {shape.num_layers} layers, the plan has {plan.num_layers}")
    return check_count("sizes", "context", context, least=0), check_count("sizes", "batch", batch)


def _find(config: Mapping[str, Any], key: str) -> Any:
    value = config.get(key)
    return config.get(_NEW_NAMES.get(key, key)) if value is None else value
