"""The forward of GLM-4.5 and of its MTP layer.

Weights are a mapping from the official checkpoint names to arrays; read `layers.py` for a layer. No cache: each
call computes all tokens, so what an incremental forward must equal is plain to see.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from zigzag.reference.errors import ArgumentError
from zigzag.reference.glm.config import GlmConfig
from zigzag.reference.glm.layers import Floats, Ids, Routing, Weights, Window, decoder_layer, get, linear, rms_norm


class GlmOutput(NamedTuple):
    """What a forward gives."""

    logits: Floats  # [B, T, vocab_size]
    hidden_states: Floats  # [B, T, hidden_size], after the final norm
    routing: dict[int, Routing]  # by layer; dense layers have none


def forward(
    config: GlmConfig,
    weights: Weights,
    token_ids: ArrayLike,
    *,
    positions: ArrayLike | None = None,
    windows: Mapping[int, Window] | None = None,
    expert_ids: Mapping[int, ArrayLike] | None = None,
) -> GlmOutput:
    """The logits of every token, row t predicting token t + 1.

    token_ids: [B, T]
    positions: [T] or [B, T], -1 for padding, whose own rows mean nothing; default 0..T-1
    windows: what a streaming layer sees, as ``{3: Window(sink=4, recent=16)}``; layers not in it see everything
    expert_ids: distinct experts [B, T, top_k] of a layer in place of its router's choice, to compare two routers that
        differ by rounding

    Raises ModelError for a missing weight, ArgumentError for ids or positions that do not fit.
    """
    ids = _ids(config, token_ids)
    places = _positions(ids, positions)
    hidden = get(weights, "model.embed_tokens.weight")[ids]
    routing = {}
    for layer in range(config.num_hidden_layers):
        window, chosen = (windows or {}).get(layer, Window()), (expert_ids or {}).get(layer)
        hidden, routed = decoder_layer(config, weights, layer, hidden, places, window, chosen)
        if routed is not None:
            routing[layer] = routed
    hidden = rms_norm(config, weights, "model.norm", hidden)
    return GlmOutput(_head(config, weights, hidden), hidden, routing)


def mtp_forward(
    config: GlmConfig,
    weights: Weights,
    hidden_states: ArrayLike,
    next_token_ids: ArrayLike,
    *,
    positions: ArrayLike | None = None,
    window: Window = Window(),  # noqa: B008 (it cannot change)
    expert_ids: ArrayLike | None = None,
) -> GlmOutput:
    """The multi-token prediction layer: pair i, of the state at position i and token i + 1, predicts token i + 2.

    ``u = eh_proj([enorm(E[token]); hnorm(state)])``, one decoder layer with experts and its own keys, causal over the
    pairs, then ``shared_head.norm`` and the model's head.

    Choices, where implementations differ:
    - Pair i has position i, as in vLLM and SGLang. transformers counts i + 1; RoPE is relative, so nothing changes.
    - The first pair keeps its embedding (transformers, SGLang); vLLM sets the embedding at position 0 to zero.
    - Embedding and head are the model's (transformers, SGLang). GLM-4.5 stores copies of both under this layer, which
      are not read; GLM-4.6 stores none.

    hidden_states: [B, T, hidden_size] after the final norm (`forward`), or of this function when chained (`mtp_draft`)
    next_token_ids: [B, T], the token after each state
    positions, window, expert_ids: as in `forward`, of this layer alone
    return: logits, the states after ``shared_head.norm``, and the routing under the layer's number

    Source: transformers' modeling_layers.py MtpLayer; vLLM's glm4_moe_mtp.py; SGLang's glm4_moe_nextn.py.
    """
    ids, states = _ids(config, next_token_ids), np.asarray(hidden_states, dtype=np.float64)
    if states.shape != (*ids.shape, config.hidden_size):
        raise ArgumentError(
            f"mtp_forward: hidden_states must have shape {[*ids.shape, config.hidden_size]}, got {list(states.shape)}"
        )
    layer = config.num_hidden_layers
    name = f"model.layers.{layer}"
    embedding = rms_norm(config, weights, f"{name}.enorm", get(weights, "model.embed_tokens.weight")[ids])
    state = rms_norm(config, weights, f"{name}.hnorm", states)
    pairs = linear(weights, f"{name}.eh_proj", np.concatenate([embedding, state], axis=-1))
    places = _positions(ids, positions)
    hidden, routed = decoder_layer(config, weights, layer, pairs, places, window, expert_ids)
    hidden = rms_norm(config, weights, f"{name}.shared_head.norm", hidden)
    return GlmOutput(_head(config, weights, hidden), hidden, {} if routed is None else {layer: routed})


def mtp_draft(
    config: GlmConfig, weights: Weights, token_ids: ArrayLike, next_token_ids: ArrayLike, num_drafts: int
) -> Ids:
    """Greedy drafts that the one MTP layer, chained, proposes after ``token_ids + next_token_ids``.

    After its first draft the layer reads its own output in place of the model's state: after ``shared_head.norm``, as
    the model's state is after its final norm. SGLang carries that too; vLLM (to 0.33) carries the state before the
    norm, and its second draft is hardly ever accepted (vllm#25993).

    token_ids: [B, T] that the model has read; next_token_ids: [B], the token it gave
    return: [B, num_drafts]
    """
    ids, token = _ids(config, token_ids), np.asarray(next_token_ids)[:, None]
    states, tokens = forward(config, weights, ids).hidden_states, np.concatenate([ids[:, 1:], token], axis=1)
    drafts = []
    for _ in range(num_drafts):
        made = mtp_forward(config, weights, states, tokens)
        drafts.append(made.logits[:, -1:].argmax(axis=-1))
        states = np.concatenate([states, made.hidden_states[:, -1:]], axis=1)
        tokens = np.concatenate([tokens, drafts[-1]], axis=1)
    return np.concatenate([np.empty((len(ids), 0), np.int64), *drafts], axis=1)


def _head(config: GlmConfig, weights: Weights, hidden: Floats) -> Floats:
    return linear(weights, "model.embed_tokens" if config.tie_word_embeddings else "lm_head", hidden)


def _ids(config: GlmConfig, token_ids: ArrayLike) -> Ids:
    ids = np.asarray(token_ids)
    if ids.ndim != 2 or ids.dtype.kind not in "iu" or ids.size == 0:
        raise ArgumentError(f"glm: token ids must be integers [B, T], got {ids.dtype} {list(ids.shape)}")
    if ids.min() < 0 or ids.max() >= config.vocab_size:
        raise ArgumentError(f"glm: token ids must be in [0, {config.vocab_size}), got {ids.min()} to {ids.max()}")
    return ids.astype(np.int64)


def _positions(ids: Ids, positions: ArrayLike | None) -> Ids:
    places = np.arange(ids.shape[1]) if positions is None else np.asarray(positions)
    if places.dtype.kind not in "iu" or places.shape not in (ids.shape, ids.shape[1:]):
        raise ArgumentError(
            f"glm: positions must be integers {list(ids.shape[1:])} or {list(ids.shape)}, got {list(places.shape)}"
        )
    return places.astype(np.int64)
