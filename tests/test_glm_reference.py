"""The GLM-4.5 reference against transformers: the model, its streaming layers, its MTP layer, and wrong variants."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from glms import FIXED, glm_options, official, one_thread, random_glm, random_mtp  # noqa: E402, F401
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from transformers.cache_utils import MtpCache  # noqa: E402

from zigzag import ArgumentError, ModelError  # noqa: E402
from zigzag.reference import glm  # noqa: E402
from zigzag.reference.glm import layers as glm_layers  # noqa: E402
from zigzag.reference.glm import model as glm_model  # noqa: E402

LENGTH = 9
GAP = 1e-4  # a router whose choice hangs on less may choose differently in float32
TOLERANCE = 1e-5  # of the largest logit, at least 1: transformers computes in float32, and 2e-6 is what it errs at most


class Recorder:
    """What the routers of a transformers model chose, by layer, in the order of the forward."""

    def __init__(self, module, batch: int, first_layer: int) -> None:
        self.ids: list = []
        gates = [m for name, m in module.named_modules() if name.endswith("mlp.gate")]
        self.layers = range(first_layer, first_layer + len(gates))
        for gate in gates:
            gate.register_forward_hook(lambda m, args, out: self.ids.append(out[2].unflatten(0, (batch, -1))))

    def by_layer(self) -> dict[int, np.ndarray]:
        return {layer: ids.numpy() for layer, ids in zip(self.layers, self.ids, strict=True)}


def token_gaps(config: glm.GlmConfig, weights: dict, layer: int, router_logits: np.ndarray) -> np.ndarray:
    """[B, T]: how little a token's choice hangs on, of groups or experts: the step from the last taken to the next."""
    bias = weights[f"model.layers.{layer}.mlp.gate.e_score_correction_bias"]
    choice = 1 / (1 + np.exp(-router_logits)) + bias
    grouped = choice.reshape(*choice.shape[:-1], config.n_group, -1)
    strength = np.sort(grouped, axis=-1)[..., -2:].sum(-1)
    best = np.argsort(-strength, axis=-1)[..., : config.topk_group, None]
    kept = np.take_along_axis(grouped, best, axis=-2).reshape(*choice.shape[:-1], -1)
    return np.minimum(step_after(strength, config.topk_group), step_after(kept, config.num_experts_per_tok))


def step_after(values: np.ndarray, count: int) -> np.ndarray:
    ranked = np.sort(values, axis=-1)[..., ::-1]
    none_left = count == ranked.shape[-1]
    return np.full(ranked.shape[:-1], np.inf) if none_left else ranked[..., count - 1] - ranked[..., count]


def smallest_gap(config: glm.GlmConfig, weights: dict, routing: dict[int, glm.Routing]) -> float:
    gaps = [token_gaps(config, weights, layer, routed.router_logits).min() for layer, routed in routing.items()]
    return float(min(gaps, default=np.inf))


def assert_close(ours: np.ndarray, theirs) -> None:
    theirs = theirs.detach().double().numpy()
    assert ours.shape == theirs.shape
    allowed = TOLERANCE * max(1.0, np.abs(theirs).max())
    error = np.abs(ours - theirs).max()
    assert error <= allowed, f"error {error:.2e} > {allowed:.2e}"


def numpy_weights(model, mtp=None) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in official(model, mtp).items()}


def config_of(model) -> glm.GlmConfig:
    return glm.GlmConfig.from_dict(model.config.to_dict())


def random_ids(batch: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 24, (batch, LENGTH))


def settled(run, config: glm.GlmConfig, weights: dict, chosen: dict[int, np.ndarray]) -> glm.GlmOutput:
    """`run(None)`; where some choice hangs on rounding, `run(chosen)`. All other choices must be those of `chosen`."""
    out = run(None)
    if smallest_gap(config, weights, out.routing) < GAP:
        out = run(chosen)
    for layer, ids in chosen.items():
        logits = out.routing[layer].router_logits
        own, _ = glm_layers.route_experts(
            logits,
            weights[f"model.layers.{layer}.mlp.gate.e_score_correction_bias"],
            top_k=config.num_experts_per_tok,
            num_groups=config.n_group,
            top_groups=config.topk_group,
            normalize=config.norm_topk_prob,
            scaling=config.routed_scaling_factor,
        )
        clear = token_gaps(config, weights, layer, logits) >= GAP
        assert np.array_equal(np.sort(own[clear]), np.sort(ids[clear])), f"layer {layer} routes differently"
    return out


def check_model(model, seed: int, *, config: glm.GlmConfig | None = None, windows: dict | None = None) -> None:
    """Logits and last states of the reference equal those of transformers."""
    config, weights = config or config_of(model), numpy_weights(model)
    ids = random_ids(2, seed)
    recorder = Recorder(model, 2, config.first_k_dense_replace)
    with torch.no_grad():
        theirs = model(torch.from_numpy(ids), output_hidden_states=True)

    def run(expert_ids):
        return glm.forward(config, weights, ids, windows=windows, expert_ids=expert_ids)

    ours = settled(run, config, weights, recorder.by_layer())
    assert_close(ours.logits, theirs.logits)
    assert_close(ours.hidden_states, theirs.hidden_states[-1])


def check_mtp(model, mtp, seed: int, *, config: glm.GlmConfig | None = None) -> None:
    """The MTP layer of the reference equals transformers' MtpModel, which counts its positions from 1."""
    config, weights = config or config_of(model), numpy_weights(model, mtp)
    ids = random_ids(1, seed)
    next_ids = random_ids(1, seed + 1)
    recorder = Recorder(mtp.layers, 1, config.num_hidden_layers)
    with torch.no_grad():
        states = model(torch.from_numpy(ids), output_hidden_states=True).hidden_states[-1]
        cache = MtpCache(config=model.config.get_mtp_config())
        positions = torch.arange(1, LENGTH + 1)[None]
        theirs = mtp.forward_layer(0, states, positions, cache, input_ids=torch.from_numpy(next_ids))
        logits = mtp.shared_head(theirs)

    def run(expert_ids):
        chosen = None if expert_ids is None else expert_ids[config.num_hidden_layers]
        return glm.mtp_forward(config, weights, states.numpy(), next_ids, expert_ids=chosen)

    ours = settled(run, config, weights, recorder.by_layer())
    assert_close(ours.hidden_states, theirs)
    assert_close(ours.logits, logits)


@settings(max_examples=60)
@given(options=glm_options(), seed=st.integers(0, 2**16))
def test_model(options: dict, seed: int) -> None:
    check_model(random_glm(options, seed), seed)


@given(options=glm_options(), seed=st.integers(0, 2**16))
def test_mtp(options: dict, seed: int) -> None:
    model = random_glm(options, seed)
    check_mtp(model, random_mtp(model, seed + 1), seed)


def test_undecided_router_is_compared_with_the_routing_given() -> None:
    """All selection values tie, and transformers breaks ties as it likes."""
    model = random_glm(FIXED)
    for name, parameter in model.named_parameters():
        if name.endswith("gate.weight"):
            parameter.data.zero_()
    for layer in model.model.layers[1:]:
        layer.mlp.gate.e_score_correction_bias.zero_()
    weights, ids = numpy_weights(model), random_ids(2, 0)
    assert smallest_gap(config_of(model), weights, glm.forward(config_of(model), weights, ids).routing) == 0
    check_model(model, 0)


def test_fixed_model_routes_by_itself() -> None:
    model = random_glm(FIXED)
    out = glm.forward(config_of(model), numpy_weights(model), random_ids(2, 0))
    assert smallest_gap(config_of(model), numpy_weights(model), out.routing) > GAP


# Wrong variants of the reference, as changes of the configuration or of one function.


def interleaved(config, states, positions):
    """Pairs (2i, 2i + 1) in place of (i, i + rotary_dim / 2)."""
    order = np.arange(config.head_dim)
    order[: config.rotary_dim] = np.arange(config.rotary_dim).reshape(-1, 2).T.ravel()
    return RIGHT_ROTATE(config, states[..., order], positions)[..., np.argsort(order)]


def bias_in_the_weights(logits, bias, **options):
    ids, _ = RIGHT_ROUTE(logits, bias, **options)
    weights = np.take_along_axis(glm_layers.sigmoid(logits) + bias, ids, axis=-1)
    return ids, weights / weights.sum(-1, keepdims=True) * options["scaling"]


def norm_after_rope(config, weights, name, states, positions, window):
    """Rotates what comes out of the projections, then norms: each norm of a head gives way to rotation and norm."""

    def norm(config, weights, part, heads):
        return RIGHT_NORM(config, weights, part, RIGHT_ROTATE(config, heads, positions))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glm_layers, "rms_norm", norm)
        patch.setattr(glm_layers, "rotate", lambda config, heads, positions: heads)
        return RIGHT_ATTENTION(config, weights, name, states, positions, window)


def without(part: str, weights, name, states):
    """Nothing from the networks of this name."""
    return states * 0 if part in name else RIGHT_NETWORK(weights, name, states)


RIGHT_ROTATE, RIGHT_ROUTE, RIGHT_NORM = glm_layers.rotate, glm_layers.route_experts, glm_layers.rms_norm
RIGHT_ATTENTION, RIGHT_NETWORK, RIGHT_LINEAR = glm_layers.self_attention, glm_layers.feed_forward, glm_layers.linear
WRONG_FUNCTION: dict[str, tuple[str, Callable]] = {
    "interleaved RoPE": ("rotate", interleaved),
    "bias in the weights": ("route_experts", bias_in_the_weights),
    "QK-norm after RoPE": ("self_attention", norm_after_rope),
    "no shared expert": ("feed_forward", partial(without, "shared_experts")),
}
WRONG_CONFIG = {
    "no scaling": {"routed_scaling_factor": 1.0},
    "no QK-norm": {"use_qk_norm": False},
    "no biases": {"attention_bias": False},
    "whole head rotated": {"partial_rotary_factor": 1.0},
    "no groups": {"n_group": 1, "topk_group": 1},
    "weights not normalised": {"norm_topk_prob": False},
    "other epsilon": {"rms_norm_eps": 1e-3},
    "other base": {"rope_theta": 100.0},
}


@pytest.mark.parametrize("name", WRONG_FUNCTION)
def test_wrong_function_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_glm(FIXED)
    check_model(model, 0)
    monkeypatch.setattr(glm_layers, *WRONG_FUNCTION[name])
    with pytest.raises(AssertionError, match=r"^error|routes differently"):
        check_model(model, 0)


@pytest.mark.parametrize("name", WRONG_CONFIG)
def test_wrong_configuration_is_noticed(name: str) -> None:
    model = random_glm(FIXED)
    with pytest.raises(AssertionError, match=r"^error|routes differently"):
        check_model(model, 0, config=replace(config_of(model), **WRONG_CONFIG[name]))


def renamed(pairs: dict[str, str], config, weights, name, states):
    """The norms of these names in each other's place."""
    head, _, last = name.rpartition(".")
    return RIGHT_NORM(config, weights, f"{head}.{pairs.get(last, last)}", states)


def first_embedding_zeroed(config, weights, name, states):
    """vLLM's way."""
    states = np.where(np.arange(states.shape[1])[:, None] == 0, 0, states) if name.endswith("enorm") else states
    return RIGHT_NORM(config, weights, name, states)


def head_without_norm(config, weights, name, states):
    return states if "shared_head" in name else RIGHT_NORM(config, weights, name, states)


def state_first(weights, name, states):
    states = np.roll(states, states.shape[-1] // 2, axis=-1) if name.endswith("eh_proj") else states
    return RIGHT_LINEAR(weights, name, states)


WRONG_MTP: dict[str, tuple[str, Callable]] = {
    "norms swapped": ("rms_norm", partial(renamed, {"enorm": "hnorm", "hnorm": "enorm"})),
    "first embedding zeroed": ("rms_norm", first_embedding_zeroed),
    "no norm before the head": ("rms_norm", head_without_norm),
    "state first": ("linear", state_first),
}


@pytest.mark.parametrize("name", WRONG_MTP)
def test_wrong_mtp_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_glm(FIXED)
    mtp = random_mtp(model)
    check_mtp(model, mtp, 0)
    monkeypatch.setattr(glm_model, *WRONG_MTP[name])
    with pytest.raises(AssertionError, match=r"^error|routes differently"):
        check_mtp(model, mtp, 0)


def chained_by_transformers(model, mtp, ids: np.ndarray, next_ids: np.ndarray, drafts: int) -> np.ndarray:
    """MtpModel's layer called again and again, on its own normed output and with its cache."""
    cache = MtpCache(config=model.config.get_mtp_config())
    tokens = torch.from_numpy(np.concatenate([ids[:, 1:], next_ids[:, None]], axis=1))
    positions, made = torch.arange(1, LENGTH + 1)[None], []
    with torch.no_grad():
        states = model(torch.from_numpy(ids), output_hidden_states=True).hidden_states[-1]
        for _ in range(drafts):
            states = mtp.forward_layer(0, states, positions, cache, input_ids=tokens)[:, -1:]
            tokens, positions = mtp.shared_head(states).argmax(-1), positions[:, -1:] + 1
            made.append(tokens)
    return torch.cat(made, dim=1).numpy()


def chains_agree(seeds: range) -> list[bool]:
    agree = []
    for seed in seeds:
        model = random_glm(FIXED, seed)
        mtp = random_mtp(model, seed + 1)
        ids, next_ids = random_ids(3, seed), random_ids(3, seed + 1)[:, 0]
        ours = glm.mtp_draft(config_of(model), numpy_weights(model, mtp), ids, next_ids, 4)
        agree.append(np.array_equal(ours, chained_by_transformers(model, mtp, ids, next_ids, 4)))
    return agree


def test_chained_drafts() -> None:
    assert chains_agree(range(8)) == [True] * 8


def test_carrying_the_state_before_the_norm_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = glm_model.mtp_forward

    def unnormed(config, weights, states, ids):
        """Up to its length, which the next norm takes away, the state before ``shared_head.norm``."""
        out = right(config, weights, states, ids)
        return out._replace(hidden_states=out.hidden_states / weights["model.layers.3.shared_head.norm.weight"])

    monkeypatch.setattr(glm_model, "mtp_forward", unnormed)
    assert not all(chains_agree(range(8)))


def test_no_draft() -> None:
    model = random_glm(FIXED)
    made = glm.mtp_draft(config_of(model), numpy_weights(model), random_ids(2, 0), np.array([1, 2]), 0)
    assert made.shape == (2, 0) and made.dtype == np.int64


def stream_in_transformers(model, layer: int, sink: int, recent: int, align: int = 1) -> None:
    """Hands the layer a mask of its own, written down from the definition."""
    i, j = np.mgrid[:LENGTH, :LENGTH]
    blocks = np.ceil((i + 1) / align) - recent // align  # the first block that is recent
    seen = (j <= i) & ((j // align < sink // align) | (j // align >= blocks))
    mask = torch.from_numpy(np.where(seen, 0.0, -np.inf)).float()[None, None]

    def replace_mask(module, args, kwargs):
        return args, {**kwargs, "attention_mask": mask}

    model.model.layers[layer].self_attn.register_forward_pre_hook(replace_mask, with_kwargs=True)


@settings(max_examples=20)
@given(options=glm_options(), seed=st.integers(0, 2**16), sink=st.integers(0, 3), recent=st.integers(1, 3))
def test_streaming_layers(options: dict, seed: int, sink: int, recent: int) -> None:
    model = random_glm(options, seed)
    model.set_attn_implementation("eager")
    streaming = range(0, options["num_hidden_layers"], 2)
    for layer in streaming:
        stream_in_transformers(model, layer, sink, recent)
    check_model(model, seed, windows={layer: glm.Window(sink, recent) for layer in streaming})


def test_wrong_window_is_noticed() -> None:
    model = random_glm(FIXED)
    model.set_attn_implementation("eager")
    stream_in_transformers(model, 1, 1, 2)
    check_model(model, 0, windows={1: glm.Window(1, 2)})
    blocks = random_glm(FIXED)
    blocks.set_attn_implementation("eager")
    stream_in_transformers(blocks, 1, 2, 2, align=2)
    check_model(blocks, 0, windows={1: glm.Window(2, 2, align=2)})
    with pytest.raises(AssertionError, match=r"^error|routes differently"):
        check_model(blocks, 0, windows={1: glm.Window(2, 2)})
    for wrong in ({1: glm.Window(1, 3)}, {2: glm.Window(1, 2)}, {}):
        with pytest.raises(AssertionError, match=r"^error|routes differently"):
            check_model(model, 0, windows=wrong)


@given(options=glm_options(), seed=st.integers(0, 2**16), cut=st.integers(1, LENGTH - 1))
def test_rows_and_what_comes_later_change_nothing(options: dict, seed: int, cut: int) -> None:
    model = random_glm(options, seed)
    config, weights, ids = config_of(model), numpy_weights(model), random_ids(2, seed)
    whole = glm.forward(config, weights, ids).logits
    assert np.allclose(glm.forward(config, weights, ids[:1, :cut]).logits, whole[:1, :cut], rtol=1e-9, atol=1e-9)


def test_padding_and_shifted_positions() -> None:
    """Left padding changes no real token, and RoPE knows only distances."""
    model = random_glm(FIXED)
    config, weights, ids = config_of(model), numpy_weights(model), random_ids(1, 0)
    whole = glm.forward(config, weights, ids).logits
    padded = np.concatenate([np.zeros((1, 3), np.int64), ids], axis=1)
    positions = np.concatenate([np.full((1, 3), -1), np.arange(LENGTH)[None]], axis=1)
    assert np.allclose(glm.forward(config, weights, padded, positions=positions).logits[:, 3:], whole, atol=1e-9)
    assert np.allclose(glm.forward(config, weights, ids, positions=np.arange(LENGTH) + 7).logits, whole, atol=1e-9)


def test_bad_arguments() -> None:
    model = random_glm(FIXED)
    config, weights, ids = config_of(model), numpy_weights(model), random_ids(2, 0)
    run, states = partial(glm.forward, config, weights), np.zeros((2, LENGTH, 16))
    with pytest.raises(ArgumentError, match=r"token ids must be integers \[B, T\], got int64 \[9\]"):
        run(ids[0])
    with pytest.raises(ArgumentError, match=r"token ids must be integers .* got float64"):
        run(ids + 0.5)
    with pytest.raises(ArgumentError, match=r"token ids must be in \[0, 24\), got .* to 25"):
        run(ids * 0 + 25)
    with pytest.raises(ArgumentError, match=r"positions must be integers \[9\] or \[2, 9\], got \[3\]"):
        run(ids, positions=np.arange(3))
    with pytest.raises(ArgumentError, match=r"mtp_forward: hidden_states must have shape \[2, 9, 16\], got"):
        glm.mtp_forward(config, weights, states[:, 1:], ids)
    with pytest.raises(ModelError, match=r"weights: model.layers.3.enorm.weight is needed and missing"):
        glm.mtp_forward(config, weights, states, ids)
    with pytest.raises(ModelError, match=r"weights: lm_head.weight is needed and missing"):
        glm.forward(config, {name: w for name, w in weights.items() if name != "lm_head.weight"}, ids)
