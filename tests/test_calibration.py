"""Scores of heads equal what a plain computation of their definition gives; the model is left as it was found."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from models import TINY, random_ids, smollm2, tiny_llama
from transformers import AttentionInterface

import zigzag
from zigzag import ArgumentError, LayerPlan, ModelError, PlanError, calibrate, reference
from zigzag.measuring.answers import answer
from zigzag.measuring.calibration import METHODS, steps
from zigzag.measuring.prompts import Prompt, passkey_prompts
from zigzag.running.masking import masked_heads

WINDOW = {"sink": 2, "recent": 5}
LAYERS, GROUPS = 3, 2


def prompt_of(length: int, answer_length: int = 3, seed: int = 0) -> Prompt:
    ids = tuple(random_ids(1, length, seed)[0].tolist())
    return Prompt(ids[:-answer_length], ids[-answer_length:], 0.5, seed)


PROMPTS = [prompt_of(30, seed=1), prompt_of(30, seed=2), prompt_of(22, seed=3), prompt_of(30, 2, seed=4)]


@pytest.fixture(scope="module", params=TINY)
def model(request: pytest.FixtureRequest) -> Any:
    return TINY[request.param](dtype=torch.float64)


@pytest.fixture
def llama() -> Any:
    return tiny_llama()


Inner = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]


@contextmanager
def attention_is(model: Any, inner: Inner) -> Iterator[None]:
    """Within the block `inner(layer, query, key, value, scaling)` is the model's attention."""

    def attention(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **_: Any) -> Any:
        return inner(module.layer_idx, query, key, value, scaling).transpose(1, 2).contiguous(), None

    AttentionInterface.register("direct", attention)
    previous = model.config._attn_implementation
    model.set_attn_implementation("direct")
    try:
        yield
    finally:
        model.set_attn_implementation(previous)


def plain(query: Any, key: Any, value: Any, scaling: float, window: dict[str, int]) -> torch.Tensor:
    """Attention as written down: softmax of the scores that the reference's mask lets through."""
    positions = np.arange(key.shape[2])
    seen = torch.from_numpy(reference.visible(positions, positions, **window))
    key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for x in (key, value))
    return (query @ key.mT * scaling).masked_fill(~seen, -torch.inf).softmax(dim=-1) @ value


@torch.inference_mode()
def answer_logp(model: Any, prompt: Prompt) -> torch.Tensor:
    """[n] log-probability of each token of the answer."""
    ids = torch.tensor(prompt.input_ids)
    logp = model(ids[None], use_cache=False).logits[0].log_softmax(dim=-1)
    return torch.stack([logp[i - 1, ids[i]] for i in range(len(prompt.prompt_ids), len(ids))])


def loss_of(model: Any, prompt: Prompt) -> float:
    return -float(answer_logp(model, prompt).mean())


def mean_loss(model: Any, prompts: list[Prompt]) -> float:
    return float(np.mean([loss_of(model, prompt) for prompt in prompts]))


def gated_log_odds(model: Any, gates: torch.Tensor, plan: LayerPlan | None) -> float:
    """Mean of log(p / (1 - p)) over the answers with ``streaming + gate * (full - streaming)`` in each head.

    In a layer that streams under a plan the gate adds to what the plan's own window gives.
    """

    def inner(layer: int, query: Any, key: Any, value: Any, scaling: float) -> torch.Tensor:
        gate = gates[layer].repeat_interleave(query.shape[1] // key.shape[1])[:, None, None]
        own = None if plan is None else plan.window(layer)
        windows = ({}, WINDOW, WINDOW if own is None else own.mask)
        full, streaming, start = (plain(query, key, value, scaling, window) for window in windows)
        return start + gate * (full - streaming)

    with attention_is(model, inner):
        logps = [answer_logp(model, prompt) for prompt in PROMPTS]
    return float(np.mean([float((logp - (-logp.expm1()).log()).mean()) for logp in logps]))


def assert_scores(actual: Any, expected: Any) -> None:
    """Equal up to the float32 in which the library takes the loss."""
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "plan",
    [
        None,
        *(LayerPlan(("streaming", "full", "streaming"), **w) for w in (WINDOW, {"sink": 4, "recent": 8, "align": 4})),
    ],
    ids=["full", "plan", "plan of another window"],
)
@pytest.mark.parametrize("name", TINY)
def test_gate_gradient_is_the_derivative_by_the_gates(name: str, plan: LayerPlan | None) -> None:
    """By the five-point formula with a wide step, for the models' norms work in float32.

    Every token goes to all experts: a choice among them would make the loss jump within the step.
    """
    gates = torch.tensor([[float(plan is None or not plan.is_streaming(layer))] * GROUPS for layer in range(LAYERS)])
    model = TINY[name](dtype=torch.float64, **({} if name == "llama" else {"num_experts_per_tok": 4}))
    expected, step = np.zeros((LAYERS, GROUPS)), 4e-3
    for layer, head in np.ndindex(expected.shape):
        change = torch.zeros(LAYERS, GROUPS, dtype=torch.float64)
        change[layer, head] = step
        less2, less, more, more2 = (gated_log_odds(model, gates.double() + k * change, plan) for k in (-2, -1, 1, 2))
        expected[layer, head] = (less2 - 8 * less + 8 * more - more2) / (12 * step)
    scores = calibrate(model, method="gate_gradient", prompts=PROMPTS, plan=plan, **WINDOW).values
    tolerance = {"rtol": 2e-3, "atol": 2e-4}
    np.testing.assert_allclose(scores, expected, **tolerance)
    for wrong in (-expected, expected[::-1], expected[:, ::-1], expected * len(PROMPTS), expected * 1.01):
        with pytest.raises(AssertionError):
            np.testing.assert_allclose(scores, wrong, **tolerance)


@pytest.mark.parametrize("batch_size", [1, 10])
def test_gate_magnitude_is_the_mean_of_each_prompts_gradient_without_its_sign(batch_size: int) -> None:
    model = tiny_llama(dtype=torch.float64)
    each = [calibrate(model, method="gate_gradient", prompts=[prompt], **WINDOW).values for prompt in PROMPTS]
    scores = calibrate(model, method="gate_magnitude", prompts=PROMPTS, batch_size=batch_size, **WINDOW).values
    np.testing.assert_allclose(scores, np.mean(np.abs(each), axis=0), rtol=1e-6)
    for wrong in (np.abs(np.mean(each, axis=0)), np.mean(each, axis=0), np.sum(np.abs(each), axis=0)):
        with pytest.raises(AssertionError):
            np.testing.assert_allclose(scores, wrong, rtol=1e-6)


@pytest.mark.parametrize("method", ["lost_mass", "output_deviation"])
def test_measures_at_the_answer(model: Any, method: str) -> None:
    measured: list[list[Any]] = [[] for _ in range(LAYERS)]
    for prompt in PROMPTS:
        total = len(prompt.input_ids)
        asked = np.arange(len(prompt.prompt_ids) - 1, total - 1)  # where the answer's tokens are predicted

        def inner(layer: int, query: Any, key: Any, value: Any, scaling: float, asked: Any = asked) -> torch.Tensor:
            q, k, v = (x.numpy() for x in (query, key, value))
            states = (q[:, :, asked], k) if method == "lost_mass" else (q[:, :, asked], k, v)
            where = {"query_positions": asked, "key_positions": np.arange(k.shape[2])}
            each = getattr(reference, method)(*states, scale=scaling, **WINDOW, **where)
            measured[layer].append(each.mean(axis=(0, 2)))
            return plain(query, key, value, scaling, {})

        with attention_is(model, inner):
            loss_of(model, prompt)
    expected = np.array([np.mean(m, axis=0).reshape(GROUPS, -1).max(axis=-1) for m in measured])
    scores = calibrate(model, method=method, prompts=PROMPTS, **WINDOW)
    assert_scores(scores.values, expected)
    with pytest.raises(AssertionError):
        assert_scores(calibrate(model, method=method, prompts=PROMPTS, sink=2, recent=6).values, expected)


def test_layer_loss_is_what_a_plan_costs(model: Any) -> None:
    expected = np.zeros((LAYERS, GROUPS))
    before = mean_loss(model, PROMPTS)
    for layer in range(LAYERS):
        kinds = tuple("streaming" if i == layer else "full" for i in range(LAYERS))
        zigzag.attach(model, LayerPlan(kinds, **WINDOW))
        try:
            expected[layer] = mean_loss(model, PROMPTS) - before
        finally:
            zigzag.detach(model)
    scores = calibrate(model, method="layer_loss", prompts=PROMPTS, **WINDOW)
    assert np.abs(expected).min() > 1e-4
    np.testing.assert_allclose(scores.values, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(scores.values, expected[::-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_batch_size_does_not_matter(method: str) -> None:
    model = tiny_llama(dtype=torch.float64)
    one, *more = (calibrate(model, method=method, prompts=PROMPTS, batch_size=size, **WINDOW) for size in (1, 2, 3, 10))
    assert one.values.shape == (LAYERS, GROUPS)
    assert (one.method, one.sink, one.recent) == (method, 2, 5)
    for other in more:
        assert_scores(other.values, one.values)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_progress_adds_up(llama: Any, method: str, batch_size: int) -> None:
    done: list[int] = []
    calibrate(llama, method=method, prompts=PROMPTS, batch_size=batch_size, advance=done.append, **WINDOW)
    assert sum(done) == steps(method, len(PROMPTS), LAYERS)


def state(model: Any) -> tuple[Any, ...]:
    return (
        model.config._attn_implementation,
        model.training,
        [p.requires_grad for p in model.parameters()],
        [p.grad is None for p in model.parameters()],
        [len(m._forward_pre_hooks) for m in model.modules()],
        [hasattr(m, "_zigzag_window") for m in model.modules()],
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_model_is_left_as_found(llama: Any, method: str, training: bool) -> None:
    llama.train(training)
    llama.lm_head.weight.requires_grad_(False)
    before = state(llama)
    weights = [p.clone() for p in llama.parameters()]

    def fail(count: int) -> None:
        assert state(llama) != before  # the comparison can tell
        raise RuntimeError("stopped")

    calibrate(llama, method=method, prompts=PROMPTS, **WINDOW)
    assert state(llama) == before
    if method != "layer_loss":
        with pytest.raises(RuntimeError, match="stopped"):
            calibrate(llama, method=method, prompts=PROMPTS, advance=fail, **WINDOW)
        assert state(llama) == before
    assert all(torch.equal(p, w) for p, w in zip(llama.parameters(), weights, strict=True))


def test_layer_loss_stopped_in_the_middle(llama: Any) -> None:
    before, done = state(llama), []

    def fail(count: int) -> None:
        done.append(count)
        if len(done) == len(PROMPTS) + 2:  # inside the first layer's masked forwards
            assert state(llama) != before
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        calibrate(llama, method="layer_loss", prompts=PROMPTS, advance=fail, **WINDOW)
    assert state(llama) == before


# Refusals


def test_damaged_weights(llama: Any) -> None:
    with torch.no_grad():
        llama.model.layers[1].mlp.up_proj.weight[3, 3] = torch.nan
    with pytest.raises(ModelError, match=r"NaN.*layers\.1\.mlp\.up_proj\.weight"):
        calibrate(llama, prompts=PROMPTS, **WINDOW)


def test_scores_that_overflow(llama: Any) -> None:
    with torch.no_grad():
        llama.lm_head.weight.fill_(3e38)
    with pytest.raises(ModelError, match="gate_gradient gave scores that are not finite"):
        calibrate(llama, prompts=PROMPTS, **WINDOW)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "best"}, "method must be one of gate_gradient, .*'best'"),
        ({"prompts": []}, "at least one prompt"),
        ({"prompts": None}, "a tokenizer or prompts are needed"),
        ({"prompts": [Prompt((), (1, 2), 0.5, 0)]}, "prompt.*at least one token"),
        ({"prompts": [Prompt((1, 2), (), 0.5, 0)]}, "answer.*at least one token"),
        ({"sink": 0, "recent": 0}, "sink"),
        ({"recent": -1}, "recent"),
        ({"batch_size": 0}, "batch_size"),
    ],
    ids=lambda x: str(x)[:20] if isinstance(x, dict) else "",
)
@pytest.mark.parametrize("method", METHODS)
def test_bad_arguments(llama: Any, method: str, options: dict[str, Any], message: str) -> None:
    before = state(llama)
    with pytest.raises(ArgumentError, match=message):
        calibrate(llama, **{"prompts": PROMPTS, "method": method, **WINDOW, **options})
    assert state(llama) == before


def test_model_under_a_plan(llama: Any) -> None:
    zigzag.attach(llama, LayerPlan(("full",) * LAYERS, **WINDOW))
    with pytest.raises(ModelError, match=r"already runs a plan.*detach"):
        calibrate(llama, prompts=PROMPTS, **WINDOW)


@pytest.mark.parametrize("shape", [(LAYERS,), (LAYERS, GROUPS + 1), (GROUPS, LAYERS), (LAYERS, 4)], ids=str)
def test_head_map_of_wrong_shape(llama: Any, shape: tuple[int, ...]) -> None:
    before = state(llama)
    with pytest.raises(PlanError, match=r"must be \[3, 2\]"), masked_heads(llama, np.ones(shape, dtype=bool), **WINDOW):
        pass
    assert state(llama) == before


# Head masks


def test_masked_heads(model: Any) -> None:
    full = np.array([[True, False], [False, False], [True, True]])

    def inner(layer: int, query: Any, key: Any, value: Any, scaling: float) -> torch.Tensor:
        keep = torch.from_numpy(full[layer].repeat(query.shape[1] // GROUPS))[:, None, None]
        return torch.where(keep, *(plain(query, key, value, scaling, window) for window in ({}, WINDOW)))

    with attention_is(model, inner):
        expected = mean_loss(model, PROMPTS)
    with masked_heads(model, full, **WINDOW):
        actual = mean_loss(model, PROMPTS)
        found = answer(model, PROMPTS, batch_size=2)
    assert actual == pytest.approx(expected, rel=1e-6)
    assert found.loss == pytest.approx(expected, rel=1e-5)
    assert mean_loss(model, PROMPTS) != pytest.approx(expected, rel=1e-5)
    with masked_heads(model, full[:, ::-1], **WINDOW):
        assert mean_loss(model, PROMPTS) != pytest.approx(expected, rel=1e-5)


def test_masked_heads_keep_no_cache(llama: Any) -> None:
    from transformers import DynamicCache

    with (
        masked_heads(llama, np.ones((LAYERS, GROUPS), dtype=bool), **WINDOW),
        pytest.raises(ModelError, match="past_key_values"),
    ):
        llama(random_ids(1, 5), past_key_values=DynamicCache())


def test_smollm2() -> None:
    model, tokenizer = smollm2()
    prompts = passkey_prompts(tokenizer, 300, count=1, seed=0)
    before = state(model)
    scores = calibrate(model, tokenizer, prompts=prompts, sink=16, recent=64)
    assert scores.values.shape == (30, 3)
    assert np.isfinite(scores.values).all()
    assert np.ptp(scores.values) > 0
    assert state(model) == before


def test_the_command_line_knows_every_method() -> None:
    from zigzag.cli.calibrate import Method
    from zigzag.measuring.calibration import METHODS
    from zigzag.measuring.published import PUBLISHED
    from zigzag.training.gates.config import METHODS as GATES

    assert [method.value for method in Method] == [*METHODS, *PUBLISHED, *GATES]
