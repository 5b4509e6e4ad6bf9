"""What `calibrate` measures on when it is told nothing, and what it writes down. Scores are in `test_calibration`."""

from typing import Any

import numpy as np
import pytest
import torch
from models import random_ids, tiny_llama, tiny_tokenizer
from windowed_models import WINDOWED, gpt_oss

from zigzag import ArgumentError, ModelError, calibrate
from zigzag.measuring import calibration
from zigzag.measuring.prompts import Prompt, digest, passkey_prompts


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llama(2)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the measurement is called with; it gives the numbers 0, 1, 2, 3."""
    found: dict[str, Any] = {}

    def measure(model: Any, prompts: Any, window: Any, batch_size: int, advance: Any) -> np.ndarray:
        found.update(prompts=prompts, window=window, batch_size=batch_size, advance=advance, training=model.training)
        return np.arange(4.0).reshape(2, 2)

    for name in calibration.METHODS:
        monkeypatch.setitem(calibration.METHODS, name, measure)
    return found


def prompts(*lengths: int) -> list[Prompt]:
    return [Prompt(tuple(random_ids(1, n - 1)[0].tolist()), (5,), 0.5, 0) for n in lengths]


def test_prompts_of_its_own(model: Any, asked: dict[str, Any]) -> None:
    """Four of 1000 tokens, the needle farther back than the window and at least 128."""
    tokenizer = tiny_tokenizer()
    for recent, distance in ((8, 128), (112, 128), (113, 129), (200, 216)):
        calibrate(model, tokenizer, sink=2, recent=recent)
        assert asked["prompts"] == passkey_prompts(tokenizer, 1000, count=4, seed=0, min_distance=distance)
    calibrate(model, tokenizer, sink=2, recent=8, length=600, num_prompts=2, seed=7)
    assert asked["prompts"] == passkey_prompts(tokenizer, 600, count=2, seed=7)
    with pytest.raises(ArgumentError, match=r"^calibrate: a tokenizer or prompts are needed, got neither"):
        calibrate(model, sink=2, recent=8)


def test_what_is_handed_on_and_written_down(model: Any, asked: dict[str, Any]) -> None:
    given = prompts(9, 7, 9)
    model.train()
    scores = calibrate(model, sink=2, recent=8, prompts=given, batch_size=3, advance=print)
    assert model.training and not asked["training"]
    model.eval()
    calibrate(model, sink=2, recent=8, prompts=given, batch_size=3, advance=print)
    assert not model.training
    assert asked["prompts"] is given and asked["window"] == {"sink": 2, "recent": 8, "align": 1}
    assert asked["batch_size"] == 3 and asked["advance"] is print
    told = {"lengths": [7, 9], "prompts": 3, "digest": digest(given)}
    assert scores.values.tolist() == [[0, 1], [2, 3]] and scores.details == told
    assert (scores.method, scores.sink, scores.recent, scores.model) == ("gate_gradient", 2, 8, "LlamaForCausalLM")
    model.config._name_or_path = "tiny"
    assert calibrate(model, method="lost_mass", sink=0, recent=8, prompts=given).model == "tiny"
    assert asked["batch_size"] == 1 and asked["advance"](5) is None


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"method": "luck"}, ArgumentError, "method must be one of gate_gradient, gate_magnitude, lost.*, got 'luck'"),
        ({"sink": 0, "recent": 0}, ArgumentError, r"sink \+ recent must be at least 1"),
        ({"sink": -1}, ArgumentError, "sink must not be negative"),
    ],
)
def test_refusals(model: Any, changes: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=f"^calibrate: {words}"):
        calibrate(model, **{"sink": 2, "recent": 8, "prompts": prompts(9), **changes})


def test_scores_that_are_not_finite(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(calibration.METHODS, "lost_mass", lambda *_: np.array([[0.0, np.nan], [1.0, 2.0]]))
    with pytest.raises(ModelError, match=r"^calibrate: lost_mass gave scores that are not finite"):
        calibrate(model, method="lost_mass", sink=2, recent=8, prompts=prompts(9))


@pytest.mark.parametrize("method", calibration.METHODS)
def test_scores_are_in_double_precision(model: Any, method: str) -> None:
    """Sums over many prompts, whatever the model's dtype."""
    measured = calibration.METHODS[method](
        model, prompts(9), {"sink": 1, "recent": 2, "align": 1}, 1, lambda count: None
    )
    assert measured.dtype == np.float64 and measured.shape == (2, 2) and measured.any()


def test_a_model_that_cannot_stream_is_refused_before_work(asked: dict[str, Any]) -> None:
    """Also before its weights are read, which takes long for a large one."""
    model = WINDOWED["olmo3"](layer_types=["sliding_attention"] * 4)
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(ModelError, match=r"^calibrate: .* has no layer with full attention"):
        calibrate(model, sink=2, recent=8, prompts=prompts(9))
    assert asked == {}


def test_batches_of_every_method(model: Any) -> None:
    """Prompts of one length go through the model together; the layers' losses ask for L + 1 times all prompts."""
    calls: list[int] = []
    with model.register_forward_hook(lambda *_: calls.append(1)):
        for method, times in (("gate_gradient", 1), ("lost_mass", 1), ("output_deviation", 1), ("layer_loss", 3)):
            calls.clear()
            calibrate(model, method=method, sink=1, recent=2, prompts=prompts(9, 9, 9, 9), batch_size=2)
            assert len(calls) == 2 * times, method


@pytest.mark.parametrize("method", ["gate_gradient", "lost_mass", "output_deviation"])
def test_learned_sinks_are_refused_by_name(method: str) -> None:
    named = "gate_gradient" if method == "gate_gradient" else "this method"
    with pytest.raises(
        ModelError, match=f"^calibrate: {named} does not know this model's learned sinks; use method='lay"
    ):
        calibrate(gpt_oss(), method=method, sink=1, recent=2, prompts=prompts(9))


def test_steps() -> None:
    found = {method: calibration.steps(method, 5, 3) for method in calibration.METHODS}
    assert found == dict.fromkeys(("gate_gradient", "gate_magnitude", "lost_mass", "output_deviation"), 5) | {
        "layer_loss": 20
    }
