"""Which tensors a GLM-4.5 checkpoint holds, of what shapes, and how the two spellings of experts correspond.

Official checkpoints hold three tensors an expert; transformers fuses them in memory to two a layer, `gate_up_proj`
[E, 2 * moe_intermediate_size, hidden_size], gate rows first, and `down_proj` [E, hidden_size, moe_intermediate_size].
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from zigzag.files.safetensors_files import ITEM_SIZES
from zigzag.reference.errors import ModelError
from zigzag.reference.glm import GlmConfig

Shape = tuple[int, ...]
FUSED = ("gate_up_proj", "down_proj")
_SHOWN = 5  # names of each kind in an error


class Place(NamedTuple):
    """Where a tensor is found: the whole tensor `name`, or ``name[expert, rows]``."""

    name: str
    expert: int | None = None
    rows: slice | None = None


class Spec(NamedTuple):
    dtype: str
    shape: Shape


def check_tensors(what: str, config: GlmConfig, found: Mapping[str, Spec], unreadable: Mapping[str, list[str]]) -> None:
    """ModelError that lists every unreadable file and every tensor that is missing, extra or not as it must be.

    unreadable: the names of the tensors in each such file, which are not missing besides; its key names the reason
    """
    in_files = {name for names in unreadable.values() for name in names}
    needed, optional = expected_shapes(config, {*found, *in_files})
    known = {**needed, **optional}
    problems = {
        f"files unreadable, with {len(in_files)} tensors": list(unreadable),
        "missing": [name for name in needed if name not in found and name not in in_files],
        "extra": [name for name in found if name not in known],
        "of another shape": [
            f"{name} is {list(spec.shape)}, must be {list(known[name])}"
            for name, spec in found.items()
            if name in known and spec.shape != known[name]
        ],
        "of an unusable dtype": [
            f"{name} is {spec.dtype}" for name, spec in found.items() if spec.dtype not in ITEM_SIZES
        ],
    }
    if lines := [f"{len(names)} {kind} ({_first(names)})" for kind, names in problems.items() if names]:
        raise ModelError(f"{what} does not fit its config.json: {'; '.join(lines)}")


def _first(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def expected_shapes(config: GlmConfig, names: Iterable[str]) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """The tensors that must and that may be there, given the names that are.

    A layer's experts are expected fused if one of its fused tensors is there. MTP layers may lack as a whole, as in
    what transformers saves; their own copies of embedding and head may lack (GLM-4.6) or be there (GLM-4.5).
    """
    names = set(names)
    table = (config.vocab_size, config.hidden_size)
    needed: dict[str, Shape] = {"model.embed_tokens.weight": table, "model.norm.weight": (config.hidden_size,)}
    optional: dict[str, Shape] = {}
    (optional if config.tie_word_embeddings else needed)["lm_head.weight"] = table
    for layer in range(config.num_hidden_layers):
        needed |= _layer(config, layer, names)
    for layer in mtp_layers(config):
        prefix = f"model.layers.{layer}."
        shapes = {**_layer(config, layer, names), **_mtp(config, prefix)}
        copies = {f"{prefix}embed_tokens.weight": table, f"{prefix}shared_head.head.weight": table}
        present = any(name.startswith(prefix) for name in names)
        (needed if present else optional).update(shapes)
        optional |= copies
    return needed, optional


def mtp_layers(config: GlmConfig) -> range:
    return range(config.num_hidden_layers, config.num_hidden_layers + config.num_nextn_predict_layers)


def expert_prefixes(config: GlmConfig) -> Iterator[str]:
    """The start of the experts' names, of each layer that has experts, MTP layers included."""
    for layer in range(config.num_hidden_layers + config.num_nextn_predict_layers):
        if not config.is_dense(layer):
            yield f"model.layers.{layer}.mlp.experts."


def official_places(config: GlmConfig, names: Iterable[str]) -> dict[str, Place]:
    """Every tensor by its official name, and where it is found among `names`, which may hold fused experts."""
    fused = {prefix + kind: prefix for prefix in expert_prefixes(config) for kind in FUSED}
    width = config.moe_intermediate_size
    places = {}
    for name in names:
        if name not in fused:
            places[name] = Place(name)
            continue
        for expert in range(config.n_routed_experts):
            own = f"{fused[name]}{expert}."
            if name.endswith("gate_up_proj"):
                places[f"{own}gate_proj.weight"] = Place(name, expert, slice(0, width))
                places[f"{own}up_proj.weight"] = Place(name, expert, slice(width, 2 * width))
            else:
                places[f"{own}down_proj.weight"] = Place(name, expert)
    return places


def fused_parts(config: GlmConfig, names: Iterable[str]) -> dict[str, tuple[list[str], Shape]]:
    """Every tensor by its name with fused experts: the official tensors that it joins, and its shape then.

    A tensor that is not fused stands for itself, with an empty shape.
    """
    names = set(names)
    experts, width, hidden = config.n_routed_experts, config.moe_intermediate_size, config.hidden_size
    fused: dict[str, tuple[list[str], Shape]] = {}
    for prefix in expert_prefixes(config):
        owns = [f"{prefix}{expert}." for expert in range(experts)]
        if f"{owns[0]}gate_proj.weight" not in names:  # an MTP layer that is not there
            continue
        gate_up = [f"{own}{kind}_proj.weight" for own in owns for kind in ("gate", "up")]
        fused[f"{prefix}gate_up_proj"] = gate_up, (experts, 2 * width, hidden)
        fused[f"{prefix}down_proj"] = [f"{own}down_proj.weight" for own in owns], (experts, hidden, width)
    inside = {part for parts, _ in fused.values() for part in parts}
    return {**{name: ([name], ()) for name in sorted(names - inside)}, **fused}


def _layer(config: GlmConfig, layer: int, names: set[str]) -> dict[str, Shape]:
    hidden, prefix = config.hidden_size, f"model.layers.{layer}."
    queries, keys = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    shapes: dict[str, Shape] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.o_proj.weight": (hidden, queries),
    }
    for kind, width in {"q": queries, "k": keys, "v": keys}.items():
        shapes[f"self_attn.{kind}_proj.weight"] = (width, hidden)
        if config.attention_bias:
            shapes[f"self_attn.{kind}_proj.bias"] = (width,)
    if config.use_qk_norm:
        shapes |= {f"self_attn.{kind}_norm.weight": (config.head_dim,) for kind in ("q", "k")}
    if config.is_dense(layer):
        shapes |= _network("mlp.", hidden, config.intermediate_size)
    else:
        shapes |= _experts(config, fused=any(f"{prefix}mlp.experts.{kind}" in names for kind in FUSED))
    return {prefix + name: shape for name, shape in shapes.items()}


def _experts(config: GlmConfig, *, fused: bool) -> dict[str, Shape]:
    experts, hidden, width = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
    shapes = {
        "mlp.gate.weight": (experts, hidden),
        "mlp.gate.e_score_correction_bias": (experts,),
        **_network("mlp.shared_experts.", hidden, width * config.n_shared_experts),
    }
    if fused:
        both = ((experts, 2 * width, hidden), (experts, hidden, width))
        return {**shapes, **{f"mlp.experts.{kind}": shape for kind, shape in zip(FUSED, both, strict=True)}}
    for expert in range(experts):
        shapes |= _network(f"mlp.experts.{expert}.", hidden, width)
    return shapes


def _network(prefix: str, hidden: int, width: int) -> dict[str, Shape]:
    inward: Shape = (width, hidden)
    return {
        f"{prefix}gate_proj.weight": inward,
        f"{prefix}up_proj.weight": inward,
        f"{prefix}down_proj.weight": (hidden, width),
    }


def _mtp(config: GlmConfig, prefix: str) -> dict[str, Shape]:
    hidden = config.hidden_size
    norms = ("enorm", "hnorm", "shared_head.norm")
    return {f"{prefix}eh_proj.weight": (hidden, 2 * hidden), **{f"{prefix}{norm}.weight": (hidden,) for norm in norms}}
