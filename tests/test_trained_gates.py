"""Gates that are trained: planted heads and layers are found, budgets hold, a run breaks off, goes on and refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from glms import one_thread  # noqa: E402, F401
from models import tiny_glm4_moe, tiny_llama, tiny_tokenizer  # noqa: E402
from planted import planted  # noqa: E402
from windowed_models import gpt_oss  # noqa: E402

from zigzag import ArgumentError, HeadScores, ModelError, PlanError, make_plan, train_gates  # noqa: E402
from zigzag.reference import assign_heads, assign_layers  # noqa: E402
from zigzag.reference.attention import gated_attention  # noqa: E402
from zigzag.running.interception import intercepted, layer_index  # noqa: E402
from zigzag.training import state as files  # noqa: E402
from zigzag.training.gates.config import GateTraining  # noqa: E402
from zigzag.training.gates.descent import Budgeted, Penalised, projected  # noqa: E402
from zigzag.training.gates.lessons import MULTIPLE, Lesson, Lessons  # noqa: E402
from zigzag.training.gates.mixing import Mixture, distance, recomputing  # noqa: E402
from zigzag.training.gates.train import GateRun  # noqa: E402

LENGTH, ASKED = 48, 32
SEEDS = range(20)


class Rows:
    """Random tokens, in which what a head sees far back is as good as what it sees nearby."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def at(self, step: int) -> Lesson:
        drawn = torch.Generator().manual_seed(1000 * self.seed + step)
        return Lesson(tuple(torch.randint(64, (LENGTH,), generator=drawn).tolist()), LENGTH - ASKED, LENGTH)

    def held_out(self) -> Lesson:
        return self.at(999)


def quiet(said: str) -> None:
    """Nothing is shown."""


def setting(method: str = "trained_gates", **changes: Any) -> GateTraining:
    small = {"sink": 1, "recent": 8, "steps": 20, "learning_rate": 0.15, "reg": 0.003, "log_every": 5, "save_every": 10}
    return GateTraining(method=method, **{**small, **changes})


def trained(model: Any, config: GateTraining, out: Path, seed: int = 0, **options: Any) -> HeadScores:
    scores = train_gates(model, None, config, out, lessons=Rows(seed), log=quiet, **options)
    assert scores is not None
    return scores


def drawn(seed: int) -> set[tuple[int, int]]:
    chosen = np.random.default_rng(seed).choice(6, 2, replace=False)
    return {(int(each) // 2, int(each) % 2) for each in chosen}


@pytest.mark.parametrize("seed", SEEDS)
def test_planted_heads_are_found(seed: int, tmp_path: Path) -> None:
    """Their gates are the highest, as heads are chosen by gates; that of a head that is missed by none falls."""
    where = drawn(seed)
    scores = trained(planted(where, seed=seed), setting(log_every=20, save_every=20), tmp_path, seed)
    assert {(int(layer), int(head)) for layer, head in np.argwhere(assign_heads(scores.values, 2))} == where
    assert scores.values.min() < 0.3 and scores.method == "trained_gates" and (scores.sink, scores.recent) == (1, 8)


@pytest.mark.parametrize("seed", SEEDS)
def test_planted_layers_are_found(seed: int, tmp_path: Path) -> None:
    """Gates end at 0 and 1, as many at 1 as there are full layers."""
    where = {layer for layer, _ in drawn(seed)}
    config = setting("trained_layer_gates", num_full=len(where), log_every=20, save_every=20)
    scores = trained(planted(drawn(seed), seed=seed), config, tmp_path, seed)
    assert np.abs(scores.values - np.round(scores.values)).max() < 1e-3
    assert {int(layer) for layer in np.flatnonzero(scores.values[:, 0] > 0.5)} == where
    assert set(make_plan(scores, num_full=len(where)).full_layers) == where
    assert (assign_layers(scores.values, len(where)) == (scores.values[:, 0] > 0.5)).all()


def test_layer_gates_speak_of_their_own_budget(tmp_path: Path) -> None:
    scores = trained(planted({(0, 1)}), setting("trained_layer_gates", num_full=1), tmp_path)
    scores.save(tmp_path / "scores")
    for held in (scores, HeadScores.load(tmp_path / "scores")):
        with pytest.raises(PlanError, match=r"make_plan: .*num_full = 1, got 2; .*--num-full 2"):
            make_plan(held, num_full=2)


@pytest.mark.parametrize("make", [tiny_llama, tiny_glm4_moe, gpt_oss])
def test_gates_of_one_change_nothing_and_of_none_stream(make: Any) -> None:
    """To the last bit at 1; at 0 as a plan under which all layers stream."""
    from zigzag import LayerPlan, attach, detach

    model, ids = make().eval(), torch.tensor([Rows().at(0).ids])
    mixture = Mixture(model, setting().window)
    layers = len(mixture.full)
    with torch.no_grad(), intercepted(model, mixture):
        assert float(distance(model, mixture, torch.full((layers, 1), 1.5), ids, 16, 48)) == 0  # clamped
        one, none = (float(distance(model, mixture, torch.full((layers, 1), gate), ids, 16, 48)) for gate in (1.0, 0.0))
    with torch.no_grad():
        full = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[:, 16:]
        attach(model, LayerPlan(("streaming",) * layers, 1, 8))
        streaming = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[:, 16:]
        detach(model)
    assert one == 0 and none == pytest.approx(float((full - streaming).square().mean()), rel=1e-4) and none > 1e-4


def test_a_gate_is_between_full_attention_of_the_first_forward_and_streaming() -> None:
    """By the reference in the first layer, where both forwards have the same states; another layer is taught."""
    model, ids = tiny_llama(2), torch.tensor([Rows().at(0).ids])
    mixture, gates = Mixture(model, setting().window), torch.tensor([[0.3, 0.8], [0.5, 1.0]])
    seen: dict[tuple[bool, int], Any] = {}
    outputs: dict[tuple[bool, int], Any] = {}

    def attend(module: Any, states: Any) -> Any:
        key = (mixture.gates is None, layer_index(module))
        seen[key], outputs[key] = states, mixture(module, states)
        return outputs[key]

    with intercepted(model, attend), torch.no_grad():
        distance(model, mixture, gates, ids, 16, 48)
    for layer in (0, 1):
        first, second = seen[True, layer], seen[False, layer]
        arrays = [each.double().numpy() for each in (second.query, second.key, second.value)]
        streamed = gated_attention(*arrays, np.zeros(2), sink=1, recent=8)
        taught = gated_attention(
            *[each.double().numpy() for each in (first.query, first.key, first.value)], np.ones(2), sink=1, recent=8
        )
        weight = np.repeat(gates[layer].double().numpy(), 2)[:, None, None]
        np.testing.assert_allclose(outputs[False, layer].numpy(), weight * taught + (1 - weight) * streamed, atol=1e-5)
    assert not torch.equal(seen[True, 1].query, seen[False, 1].query)


def test_gradients_are_those_of_the_loss() -> None:
    """By differences in float64, with layers computed again and without; the weights get none."""
    model = tiny_llama(2, dtype=torch.float64)
    ids = torch.tensor([Rows().at(0).ids])
    mixture = Mixture(model, setting().window)
    gates = torch.tensor([[0.3, 0.8], [0.5, 0.9]], dtype=torch.float64, requires_grad=True)

    def apart(each: Any) -> Any:
        return distance(model, mixture, each, ids, 16, 48)

    found = []
    with intercepted(model, mixture):
        for again in (False, True):
            if again:
                with recomputing(model):
                    assert all(layer.training for layer in model.get_decoder().layers)
                    found.append(torch.autograd.grad(apart(gates), gates)[0])
            else:
                found.append(torch.autograd.grad(apart(gates), gates)[0])
        assert not any(layer.training or layer.gradient_checkpointing for layer in model.get_decoder().layers)
        assert torch.equal(*found)
        step = torch.zeros_like(gates)
        for place in np.ndindex(2, 2):
            step.zero_()[place] = 1e-3
            with torch.no_grad():
                slope = float(apart(gates + step) - apart(gates - step)) / 2e-3
            assert slope == pytest.approx(float(found[0][place]), rel=2e-2, abs=1e-6)  # distances are float32


def test_nothing_is_held_between_steps() -> None:
    """The first forward's attention is as large as all of a cache."""
    model = planted({(0, 1)})
    mixture = Mixture(model, setting().window)
    with intercepted(model, mixture):
        run = GateRun(setting(), model, mixture, Rows())
        run.step()
    assert mixture.gates is None and not mixture._taught


def test_it_is_left_as_it_was_found(tmp_path: Path) -> None:
    model = planted({(0, 1)}).train()
    model.get_decoder().layers[1].eval()
    flags = [(name, module.training) for name, module in model.named_modules()]
    model.lm_head.weight.requires_grad_(False)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    trained(model, setting(steps=2), tmp_path)
    assert [(name, module.training) for name, module in model.named_modules()] == flags
    assert [name for name, weight in model.named_parameters() if not weight.requires_grad] == ["lm_head.weight"]
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in before.items())
    assert model.config._attn_implementation != "zigzag"


class Stopped(Exception):
    """What a test breaks a run off with."""


@pytest.mark.parametrize(("method", "budget"), [("trained_gates", {}), ("trained_layer_gates", {"num_full": 1})])
def test_broken_off_and_resumed(method: str, budget: dict[str, int], tmp_path: Path) -> None:
    """Bit for bit, wherever it stopped; the model is free again after a break."""
    model, config = planted({(1, 0)}), setting(method, **budget)
    whole = trained(model, config, tmp_path / "whole")

    def breaks(said: str) -> None:
        if "step 15 of" in said:
            raise Stopped

    with pytest.raises(Stopped):
        train_gates(model, None, config, tmp_path / "broken", lessons=Rows(), log=breaks)
    part = HeadScores.load(tmp_path / "broken" / "scores.json")
    assert part.details["steps"] == [10, 20] and part != whole
    assert trained(model, config, tmp_path / "broken", resume=True) == whole
    assert HeadScores.load(tmp_path / "broken" / "scores.json") == whole and whole.details["steps"] == [20, 20]
    (one, _), (other, _) = files.load_state(tmp_path / "whole"), files.load_state(tmp_path / "broken")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    lines = files.read_log(tmp_path / "broken")
    assert [line["step"] for line in lines if "step" in line] == [5, 10, 15, 20]


def test_what_it_cannot_go_on_with(tmp_path: Path) -> None:
    model = planted({(1, 0)})
    trained(model, setting(steps=2), tmp_path)
    with pytest.raises(ArgumentError, match="holds a run"):
        trained(model, setting(steps=2), tmp_path)
    for other, config in ((model, setting(steps=2, reg=0.5)), (planted({(0, 0)}, seed=1), setting(steps=2))):
        with pytest.raises(ModelError, match=r"calibrate: .* other settings or another model"):
            trained(other, config, tmp_path, resume=True)
    (tmp_path / files.CHECKPOINT).write_bytes(b"damaged")
    with pytest.raises(ModelError, match="no whole checkpoint"):
        trained(model, setting(steps=2), tmp_path, resume=True)


def test_a_loss_that_is_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scores of the last good steps stay, and the model is free."""
    model, step = planted({(1, 0)}), GateRun.step
    monkeypatch.setattr(GateRun, "step", lambda run: step(run) * (torch.nan if run.step_number > 12 else 1))
    with pytest.raises(ModelError, match=r"calibrate: the loss is nan at step 15; .* smaller --learning-rate"):
        trained(model, setting(), tmp_path)
    assert HeadScores.load(tmp_path / "scores.json").details["steps"] == [10, 20]
    monkeypatch.setattr(GateRun, "step", step)
    assert trained(model, setting(), tmp_path, resume=True).details["steps"] == [20, 20]


def test_models_that_gates_cannot_speak_of(tmp_path: Path) -> None:
    """Whose forwards differ each time, or whose weights are not finite; nothing is written."""
    model = planted({(1, 0)})
    hook = (
        model.get_decoder()
        .layers[1]
        .register_forward_hook(lambda module, args, output: output + torch.rand_like(output))
    )
    with pytest.raises(ModelError, match=r"two forwards of this model give states .* apart"):
        trained(model, setting(), tmp_path / "one")
    hook.remove()
    with pytest.raises(ModelError, match="at most 3, the layers that may stream, got 4"):
        trained(model, setting("trained_layer_gates", num_full=4), tmp_path / "two")
    model.get_decoder().layers[0].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(ModelError, match="NaN or infinity"):
        trained(model, setting(), tmp_path / "three")
    assert not list(tmp_path.iterdir())


def test_settings_that_make_no_sense() -> None:
    for changes, said in (
        ({"method": "echo"}, "method must be one of trained_gates, trained_layer_gates"),
        ({"steps": 0}, "steps must be 1 or more"),
        ({"longest": 0}, "longest must be 1 or more"),
        ({"warmup": 0.7}, "warmup must be 0 to 0.5"),
        ({"reg": -1}, "reg must be 0 to inf"),
        ({"learning_rate": 0}, "learning_rate must be above 0"),
        ({"num_full": 2}, "trained_gates knows no num_full"),
        ({"sink": 0, "recent": 0}, "sink"),
    ):
        with pytest.raises(ArgumentError, match=said):
            setting(**{"method": "trained_gates", **changes})
    with pytest.raises(ArgumentError, match="needs num_full"):
        setting("trained_layer_gates")


def test_as_published() -> None:
    """DuoAttention's own numbers (its public code), and its schedule."""
    config = GateTraining()
    assert (config.sink, config.recent, config.steps, config.learning_rate, config.reg) == (128, 256, 2000, 0.02, 0.05)
    assert (config.passkeys, config.words, config.lengths, config.seed, config.warmup) == (10, 32, 50, 42, 0.2)
    rates = [config.rate(step) / 0.02 for step in (0, 39, 40, 399, 400, 1600, 1601, 1960, 1999)]
    np.testing.assert_allclose(rates, [0.1, 0.1, 41 / 400, 1, 1, 1, 399 / 400, 0.1, 0.1])


def test_steps_are_those_of_adamw() -> None:
    config, gates = setting(steps=100, warmup=0.0), torch.tensor([[0.9, 0.2]])  # which leave [0, 1] on the way
    mine, weight = Penalised(config, gates), torch.nn.Parameter(gates.clone())
    adam, outside = torch.optim.AdamW([weight], lr=0.15, weight_decay=0.0), False
    gradients = torch.tensor([[0.2, -0.1], [-0.3, 0.4], [-2.0, 3.0], [-2.0, 3.0], [-2.0, 3.0], [0.5, -0.5]])
    for step, gradient in enumerate(gradients[:, None]):
        mine.move(gates, gradient, step)
        outside = outside or bool((weight.data != weight.data.clamp(0, 1)).any())
        weight.data.clamp_(0, 1)
        weight.grad = gradient
        adam.step()
        torch.testing.assert_close(gates, weight.data)
    assert outside
    assert float(mine.penalty(torch.tensor([[0.5, 0.1]]))) == pytest.approx(0.003 * 0.3)


@pytest.mark.parametrize("total", [0.0, 0.5, 2.0, 3.0])
def test_projection(total: float) -> None:
    """No point of the set is nearer: neither any of a grid, nor one of many drawn ones."""
    gates = torch.tensor([1.4, 0.2, -0.5], dtype=torch.float64)
    found = projected(gates, total)
    assert float(found.sum()) == pytest.approx(total) and bool(((found >= 0) & (found <= 1)).all())
    axis = torch.linspace(0, 1, 41, dtype=torch.float64)
    others = torch.cartesian_prod(axis, axis)
    others = torch.cat([others, total - others.sum(dim=1, keepdim=True)], dim=1)
    others = others[((others >= 0) & (others <= 1)).all(dim=1)]
    assert float((found - gates).norm()) <= float((others - gates).norm(dim=1).min()) + 1e-9


def test_one_step_within_a_budget() -> None:
    """All gradients over one root mean square, then the nearest gates with the budget; none of them at an end."""
    config, gates = setting("trained_layer_gates", num_full=1, steps=100), torch.tensor([[0.6], [0.5], [0.4]])
    gradient = torch.tensor([[-1.0], [-10.0], [-2.0]])
    first, second = 0.1 * gradient / (1 - 0.9**46), 0.001 * (105 / 3) / (1 - 0.999**46)
    expected = gates - 0.15 * first / second**0.5
    descent = Budgeted(config, gates)
    descent.move(gates, gradient, 45)
    torch.testing.assert_close(gates, projected(expected, 3 - 2 * 46 / 60))
    assert bool(((gates > 0.01) & (gates < 0.99)).all())


def test_a_budget_holds_at_every_step_and_its_order_is_the_gradients() -> None:
    """A layer whose gate matters ten times as much stays, although both gradients say "up"."""
    config = setting("trained_layer_gates", num_full=1, steps=30)
    gates = torch.ones(3, 1)
    descent = Budgeted(config, gates)
    for step in range(30):
        descent.move(gates, torch.tensor([[-1.0], [-10.0], [-2.0]]), step)
        assert float(gates.sum()) == pytest.approx(descent.budget(3, step), abs=1e-5)
    assert gates.flatten().tolist() == pytest.approx([0, 1, 0], abs=1e-6)
    assert descent.budget(3, 0) == pytest.approx(3 - 2 / 18) and descent.budget(3, 17) == descent.budget(3, 29) == 1


def rows(**changes: Any) -> Lessons:
    small = {"sink": 4, "recent": 16, "shortest": 512, "longest": 752, "lengths": 4, "passkeys": 3, "words": 4}
    return Lessons(GateTraining(**{**small, **changes}), tiny_tokenizer(), list(range(50, 60)) * 100, 1024)


def test_rows_of_needles() -> None:
    """Each as long as asked for, needles apart and in order, everything told once more where states are compared."""
    made, tokenizer = rows(), tiny_tokenizer()
    seen = [made.at(step) for step in range(4)]
    assert sorted(len(row.ids) for row in seen) == [512, 592, 672, 752]
    assert {row.ids for row in seen} == {made.at(step).ids for step in range(4, 8)} and made.held_out() not in seen
    for row in [*seen, made.held_out()]:
        asked, before = (tokenizer.decode(part) for part in (row.ids[row.first : row.last], row.ids[: row.first]))
        phrases = [line.split("phrase is ")[1].rstrip(".") for line in asked.splitlines() if "phrase is" in line]
        assert len(phrases) == 3 and all(len(phrase.split()) == 4 for phrase in phrases)
        places = [before.index(f"Note {n}: the secret phrase is {phrase}.") for n, phrase in enumerate(phrases, 1)]
        assert places == sorted(places) and row.last <= len(row.ids) < row.last + MULTIPLE
        assert "phrase" not in tokenizer.decode(row.ids[row.last :])
    assert rows(seed=1).at(0) != made.at(0) and rows().at(0) == made.at(0)


def test_needles_stand_between_a_twentieth_of_the_text_and_the_rest_of_it() -> None:
    made = rows(lengths=40, passkeys=3)
    depths = []
    for step in range(40):
        row = made.at(step)
        needles = next(parts for parts, tail in made._parts if tuple(tail) == row.ids[row.first : row.last])
        text = row.first - sum(map(len, needles))
        for number, needle in enumerate(needles):
            place = next(i for i in range(row.first) if row.ids[i : i + len(needle)] == tuple(needle))
            depths.append((place - sum(map(len, needles[:number]))) / text)
    assert 0.04 < min(depths) < 0.1 and 0.9 < max(depths) <= 0.95 and np.std(depths) > 0.2


def test_rows_that_cannot_be_made() -> None:
    with pytest.raises(ArgumentError, match=r"rows must have at least (\d+) tokens for 3 needles of 4 words") as caught:
        rows(shortest=100)
    least = int(str(caught.value).split("at least ")[1].split()[0])
    assert rows(shortest=least).at(0) and least % MULTIPLE == 0
    with pytest.raises(ArgumentError, match="at least"):
        rows(shortest=least - MULTIPLE)
    with pytest.raises(ArgumentError, match="rows of 2000 tokens are beyond the model's context of 1024"):
        rows(longest=2000)
    with pytest.raises(ArgumentError, match=r"longest must be at least 512 tokens, got 300"):
        rows(longest=300)
    with pytest.raises(ArgumentError, match="1000 tokens of text are too few for rows of 1008"):
        rows(longest=1008)


def test_needles_in_the_text_of_this_python(tmp_path: Path) -> None:
    """The whole of it on a tiny model: rows from the library, as long as the model's context at most."""
    model = tiny_llama(2, vocab_size=256)
    config = setting(steps=2, passkeys=2, words=3, lengths=2, shortest=416)
    scores = train_gates(model, tiny_tokenizer(), config, tmp_path, log=quiet)
    assert (
        scores is not None and scores.values.shape == (2, 2) and scores.details == {"steps": [2, 2], "num_full": None}
    )
