"""Recovery under a plan, in seconds on small models: what learns, from what, what is left, what is refused.

The yardstick is written anew here: the saved model under `zigzag.attach` beside the model as it was.
"""

import copy
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
peft = pytest.importorskip("peft", reason="peft is not installed")

from glms import one_thread  # noqa: E402, F401
from models import tiny_glm4_moe, tiny_granite, tiny_llama, tiny_tokenizer  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

import zigzag  # noqa: E402
from zigzag import ArgumentError, LayerPlan, ModelError, PlanError, load_model  # noqa: E402
from zigzag.cli.app import app  # noqa: E402
from zigzag.evidence import candidates  # noqa: E402
from zigzag.models.folder import save_folder  # noqa: E402
from zigzag.training import state as files  # noqa: E402
from zigzag.training.recovery import loss as losses  # noqa: E402
from zigzag.training.recovery.config import RATES, RecoveryTraining  # noqa: E402
from zigzag.training.recovery.lessons import Lessons, Maker  # noqa: E402
from zigzag.training.recovery.train import HELD_OUT, RecoveryRun, recover  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks for it

PLAN = LayerPlan(("streaming", "full", "streaming"), 4, 16)
LENGTH = 400  # bytes: as short as a passkey prompt of bytes can be, nearly
WINDOW = [PLAN.sink, PLAN.recent, PLAN.align]


class Stopped(Exception):
    """What a test breaks a run off with."""


def quiet(said: str) -> None:
    """Nothing is shown."""


def make(**changes: Any) -> Any:
    """Its head is not its embedding, so that a head that has learned is not what teaches."""
    return tiny_llama(**{"vocab_size": 256, "initializer_range": 0.2, "tie_word_embeddings": False, **changes})


def setting(**changes: Any) -> RecoveryTraining:
    small = {"steps": 4, "rows": 2, "length": LENGTH, "needles": 1, "tokens": 1000, "own": 0.0, "judged": 1}
    rates = {"log_every": 2, "save_every": 4, "learning_rate": 3e-3, "warmup": 0.0, "retrieval": 0.5}
    return RecoveryTraining(**{**small, **rates, **changes})


def a_run(config: RecoveryTraining, model: Any, plan: LayerPlan = PLAN) -> RecoveryRun:
    stream = torch.arange(1000) * 7 % 256
    return RecoveryRun(config, model, tiny_tokenizer(), plan, {"training": stream, "held out": stream.flip(0)})


@pytest.fixture
def unjudged(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that do not look at how good it is: judging takes as long as steps do."""
    monkeypatch.setattr(RecoveryRun, "judged", lambda self: {"held_out": 0.0, "passkeys": 0})


@cache
def trained(learn: str, folder: Path) -> Path:
    """One run of each way for all tests that only look at it."""
    out = folder / learn
    assert recover(setting(learn=learn), make(), tiny_tokenizer(), PLAN, out, log=quiet)
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("recovered")
    return made


def saved(learn: str, out: Path) -> Any:
    if learn == "lora":
        return peft.PeftModel.from_pretrained(make(), out / "adapter").eval()
    return load_model(out / "model")[0]


def logits_of(model: Any, tokens: Any) -> Any:
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits.double()


def held_out(out: Path) -> list[Lessons]:
    """The rows by which the run in `out` was judged."""
    streams = {"held out": files.load_state(out)[0]["tokens.held out"]}
    maker = Maker(setting(), tiny_tokenizer(), streams, 128, "cpu")
    return [maker.rows(number, "held out") for number in range(HELD_OUT)]


def far(model: Any, rows: Lessons) -> float:
    """The loss of `model`, which runs under a plan, if at all, beside one that never learned; row by row."""
    before, now = logits_of(make(), rows.tokens), logits_of(model, rows.tokens)
    apart = (before.softmax(-1) * (before.log_softmax(-1) - now.log_softmax(-1))).sum(-1)
    total = 0.0
    for row, says in enumerate(before.argmax(-1).tolist()):
        places = [
            place
            for place in rows.counted[row].nonzero().flatten().tolist()
            if not rows.answers[row, place] or says[place] == rows.tokens[row, place + 1]
        ]
        total += float(apart[row, places].sum()) / max(1, len(places)) / len(rows.tokens)
    return total


@pytest.mark.parametrize("learn", RATES)
def test_what_is_saved_is_what_was_judged(learn: str, folder: Path) -> None:
    """And it is nearer to the model as it was: by the saved weights, by `attach`, and by a model that never learned."""
    out = trained(learn, folder)
    first, *lines = files.read_log(out)
    for model, said in ((make(), first["before"]), (saved(learn, out), lines[-1])):
        zigzag.attach(model, LayerPlan.load(out / "plan.json"))
        found = np.mean([far(model, rows) for rows in held_out(out)])
        assert found == pytest.approx(said["held_out"], abs=2e-5)
    assert lines[-1]["held_out"] < 0.97 * first["before"]["held_out"]
    assert [line["step"] for line in lines] == [2, 4]
    made = out / ("adapter" if learn == "lora" else "model")
    assert [one.model for one in candidates.from_recovered(out)] == [None, str(made)]  # zigzag evidence --recovered


def test_each_step_is_taken_from_the_model_as_it_was() -> None:
    """Its loss is that of the weights so far under the plan, beside the first ones without, head included."""
    run = a_run(setting(learn="all", learning_rate=1e-2), make())
    run.step()
    rows = run.maker.rows(1)
    with run.learner.now():
        student = copy.deepcopy(run.model)
    assert far(make(), rows) == 0 < far(student, rows)
    zigzag.attach(student, PLAN)
    assert float(run.step()) == pytest.approx(far(student, rows), rel=1e-3)


def test_only_the_streaming_layers_and_norms_learn(folder: Path) -> None:
    before, after = make().state_dict(), saved("norms+projections", trained("norms+projections", folder)).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if re.search(r"norm|layers\.[02]\.self_attn", name)}
    assert len(changed) == 3 * 2 + 1 + 2 * 4


def test_all_learn(folder: Path) -> None:
    before, after = make().state_dict(), saved("all", trained("all", folder)).state_dict()
    assert not [name for name in before if torch.equal(before[name], after[name])]


@pytest.mark.parametrize(("layers", "learning"), [("streaming", {0, 2}), ("all", {0, 1, 2})])
def test_adapters_lie_on_projections_alone(layers: str, learning: set[int]) -> None:
    run = a_run(setting(layers=layers, rank=3), make())
    found = {re.search(r"layers\.(\d)\.self_attn\.(\w)_proj\.lora_[AB]", name) for name in run.learner.weights}
    assert None not in found and {(int(m[1]), m[2]) for m in found if m} == {(n, p) for n in learning for p in "qkvo"}
    assert len(run.learner.weights) == 8 * len(learning)
    assert {min(weight.shape) for weight in run.learner.weights.values()} == {3}


def test_an_adapter_after_a_layer_of_experts() -> None:
    run = a_run(setting(checkpointing=True), tiny_glm4_moe(vocab_size=256))
    assert float(run.step()) > 0 and {name.split(".")[2] for name in run.learner.weights} == {"0", "2"}


def test_windows_of_their_own() -> None:
    """Each layer learns under its own; what is asked for lies beyond the widest."""
    plan = LayerPlan(PLAN.kinds, 4, (12, 0, 150))
    run = a_run(setting(learn="all"), make(), plan)
    with run.learner.now():
        student = copy.deepcopy(run.model)
    rows = run.maker.rows(0)
    zigzag.attach(student, plan)
    loss = float(run.step())
    assert loss == pytest.approx(far(student, rows), rel=1e-3) and run.maker.distance > 150
    zigzag.attach(student, PLAN)
    assert abs(loss - far(student, rows)) > 0.01


def traits(model: Any) -> Any:
    """All by which a model could be told from what it was."""
    weights = {
        name: (weight.data_ptr(), weight.requires_grad, weight.grad) for name, weight in model.named_parameters()
    }
    modules = {name: (type(each), each.training, set(vars(each))) for name, each in model.named_modules()}
    return weights, modules, torch.random.get_rng_state().tolist(), model.config.to_dict()


@pytest.mark.parametrize(
    ("learn", "breaks"), [("lora", False), ("lora", True), ("norms+projections", True), ("all", False)]
)
def test_left_as_it_was_found(learn: str, breaks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    model.train()
    model.model.norm.eval()
    model.lm_head.weight.requires_grad_(False)
    numbers, found = copy.deepcopy(model.state_dict()), traits(model)
    if breaks:
        monkeypatch.setattr("zigzag.training.recovery.loss._divergence", lambda *given: (_ for _ in ()).throw(Stopped))
        with pytest.raises(Stopped):
            recover(setting(learn=learn, steps=1), model, tiny_tokenizer(), PLAN, tmp_path / "out", log=quiet)
    else:
        config = setting(learn=learn, steps=1, checkpointing=True)
        recover(config, model, tiny_tokenizer(), PLAN, tmp_path / "out", log=quiet)
    assert traits(model) == found
    assert all(torch.equal(weight, numbers[name]) for name, weight in model.state_dict().items())
    assert model.state_dict().keys() == numbers.keys()


@pytest.mark.usefixtures("unjudged")
@pytest.mark.parametrize("learn", ["lora", "norms+projections"])
def test_broken_off_and_resumed(learn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, whatever was drawn meanwhile; a line's loss is the mean since it went on."""
    config = setting(learn=learn, steps=3, log_every=3, save_every=1, rows=1)
    recover(config, make(), tiny_tokenizer(), PLAN, tmp_path / "whole", log=quiet)
    step = RecoveryRun.step

    def breaks(self: RecoveryRun) -> Any:
        if self.step_number == 2:
            raise Stopped
        return step(self)

    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(RecoveryRun, "step", breaks)
        recover(config, make(), tiny_tokenizer(), PLAN, tmp_path / "broken", log=quiet)
    torch.manual_seed(5)
    assert recover(config, make(), tiny_tokenizer(), PLAN, tmp_path / "broken", resume=True, log=quiet)
    (one, _), (other, _) = files.load_state(tmp_path / "whole"), files.load_state(tmp_path / "broken")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    logs = [files.read_log(tmp_path / name) for name in ("whole", "broken")]
    (first, line), (again, other_line) = logs
    assert first == again and {**line, "seconds": 0, "loss": 0} == {**other_line, "seconds": 0, "loss": 0}


def test_what_it_cannot_go_on_with(folder: Path, tmp_path: Path) -> None:
    out, tokenizer = trained("lora", folder), tiny_tokenizer()
    with pytest.raises(ModelError, match="--resume needs"):
        recover(setting(), make(), tokenizer, PLAN, tmp_path, resume=True, log=quiet)
    with pytest.raises(ArgumentError, match="holds a run"):
        recover(setting(), make(), tokenizer, PLAN, out, log=quiet)
    other = make()
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight.mul_(1.001)
    wider = LayerPlan(PLAN.kinds, 4, 17)
    for config, model, plan in ((setting(seed=1), make(), PLAN), (setting(), other, PLAN), (setting(), make(), wider)):
        with pytest.raises(ModelError, match="other settings or another model"):
            recover(config, model, tokenizer, plan, out, resume=True, log=quiet)


@pytest.mark.usefixtures("unjudged")
def test_a_loss_that_is_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends the run; what was saved before stays."""
    step = RecoveryRun.step
    monkeypatch.setattr(RecoveryRun, "step", lambda self: step(self) * (torch.nan if self.step_number > 1 else 1))
    with pytest.raises(ModelError, match=r"recover: the loss is nan at step 2.* smaller --learning-rate"):
        recover(setting(steps=2, log_every=1, save_every=1), make(), tiny_tokenizer(), PLAN, tmp_path, log=quiet)
    assert files.load_state(tmp_path)[1]["step"] == 1 and saved("lora", tmp_path) is not None


def test_the_card(folder: Path) -> None:
    """It says what the log says."""
    out = trained("lora", folder)
    first, *lines = files.read_log(out)
    card = (out / "README.md").read_text()
    assert "`sFs` (F full, s streaming), sink 4, recent 16: `plan.json`" in card and "4 steps of 4" in card
    for told in (first["before"], *lines):
        assert f"| {told['held_out']:.4f} | {told['passkeys']} of 1 |" in card
    assert not (out / "adapter" / "README.md").exists()
    assert f"finds {first['full']['passkeys']};" in card and f"{first['weights']:,} numbers" in card


def test_layers_that_are_computed_again_give_the_same() -> None:
    runs = [a_run(setting(learn="norms+projections", checkpointing=again), make()) for again in (False, True)]
    calls = []
    runs[1].model.model.layers[2].mlp.register_forward_pre_hook(lambda *given: calls.append(1))
    one, other = ([float(run.step()) for _ in range(2)] for run in runs)
    assert one == other and len(calls) == 2 * 3  # as it was, as it is, and again
    states = [run.state() for run in runs]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_half_precision_learns_in_single() -> None:
    """Steps that bfloat16 could not show are not lost."""
    run = a_run(setting(learn="norms+projections", learning_rate=1e-6, rows=1), make(dtype=torch.bfloat16))
    name = "model.norm.weight"
    before = run.learner.weights[name].clone()
    run.step()
    moved = run.learner.weights[name]
    assert moved.dtype == torch.float32 and bool((moved != before).all()) and bool((moved.bfloat16() == 1).all())
    with run.learner.now():
        assert bool((run.model.model.norm.weight == moved.bfloat16()).all())


def test_weights_of_places_by_hand() -> None:
    """Of a text all; of an answer what the model would have said; of a row without any of it nothing."""
    tokens = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 8], [5, 6, 7, 8]])
    answers = torch.tensor([[False] * 4, [False, True, True, False], [True, False, False, False]])
    lessons = Lessons(tokens, answers | torch.tensor([[True], [False], [False]]), answers)
    says = torch.zeros(3, 4, 10)
    says[1, 1, 7] = says[1, 2, 9] = says[2, 0, 5] = 1  # 7 is right, 9 and 5 are not
    found = losses.weights_of(lessons, says, lambda states: states)
    assert torch.allclose(found, torch.tensor([[1 / 12] * 4, [0, 1 / 3, 0, 0], [0] * 4]))


def test_the_loss_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in one; forward, of the model as it was; with the states' distance as asked; the same gradients."""
    drawn = torch.Generator().manual_seed(0)
    now, before, head = (
        torch.randn(*shape, generator=drawn, dtype=torch.float64) for shape in ((2, 5, 4), (2, 5, 4), (4, 9))
    )
    weights = torch.rand(2, 5, generator=drawn) * torch.tensor([[1, 1, 0, 1, 1], [0, 1, 1, 1, 1]])
    p, q = (before @ head).softmax(-1), (now @ head).softmax(-1)
    wanted = (weights * ((p * (p / q).log()).sum(-1) + 0.5 * (now - before).square().mean(-1))).sum()
    grads = []
    for pieces in (100, 3):
        monkeypatch.setattr(losses, "PLACES", pieces)
        leaf = now.clone().requires_grad_()
        found = losses.distance(leaf, before, weights, (lambda x: x @ head, lambda x: x @ head), 0.5)
        assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
        grads.append(torch.autograd.grad(found, leaf)[0])
    assert torch.allclose(grads[0], grads[1], rtol=1e-5) and float(grads[0][0, 2].abs().max()) == 0
    nothing = losses.distance(now.requires_grad_(), before, weights * 0, (lambda x: x @ head, lambda x: x @ head), 0.5)
    nothing.backward()
    assert nothing.item() == 0 and float(now.grad.abs().max()) == 0


def test_rows() -> None:
    """Exactly so long; by turns a text, a passkey, a text, codes; what is asked for stands far before."""
    tokenizer = tiny_tokenizer()
    config = setting(rows=4, length=500, needles=2)
    streams = {"training": torch.full((600,), 32), "held out": torch.full((600,), 33)}  # A and B
    maker = Maker(config, tokenizer, streams, 128, "cpu")
    lessons, again = maker.rows(3), maker.rows(3)
    assert all(torch.equal(one, other) for one, other in zip(lessons, again, strict=True))
    assert lessons.tokens.shape == (4, 500) and lessons.answers.any(dim=1).tolist() == [False, True, False, True]
    assert bool((lessons.counted == (lessons.answers | ~lessons.answers.any(dim=1, keepdim=True))).all())
    for row, count in ((1, 1), (3, 2)):
        text = tokenizer.decode(lessons.tokens[row])
        said = [int(place) + 1 for place in lessons.answers[row].nonzero()]
        answer = tokenizer.decode(lessons.tokens[row][said])
        keys = re.findall(r"\d{5}", answer)
        assert len(keys) == count and re.sub(r"[\d ]", "", answer) == ""
        for key in keys:
            places = [found.start() for found in re.finditer(key, text)]
            assert len(places) == 3 and places[2] - places[1] > 128
    assert "AAAA" in tokenizer.decode(lessons.tokens[3])
    names = re.findall(r"The code of (\w+) is (\d{5})", tokenizer.decode(lessons.tokens[3]))
    assert len(set(names)) == 2 and len(names) == 4  # each where it hides and where it is asked for, alike
    other = maker.rows(3, "held out")
    assert not [row for row in range(4) if torch.equal(lessons.tokens[row], other.tokens[row])]
    assert not torch.equal(maker.rows(4).tokens[1], lessons.tokens[1])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"learn": "norm"}, "learn must be one of lora, norms.projections, all"),
        ({"layers": "full"}, "layers must be streaming or all"),
        ({"learn": "all", "layers": "all"}, "leave it out for learn='all'"),
        ({"learn": "all", "rank": 4}, "rank and alpha are of learn='lora'"),
        ({"rank": 0}, "rank must be 1 or more"),
        ({"alpha": 0.5}, "alpha must be 1 or more"),
        ({"steps": 0}, "steps must be 1 or more"),
        ({"retrieval": 1.5}, "retrieval must be 0 to 1"),
        ({"states": -1.0}, "states must be 0 to inf"),
        ({"learning_rate": 0.0}, "must be above 0"),
        ({"needles": 17}, "needles must be at most 16"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ArgumentError, match=told):
        setting(**changes)


def refused(kind: type[Exception], told: str, out: Path, **given: Any) -> None:
    """Before anything is written."""
    arguments = {"config": setting(), "model": make(), "tokenizer": tiny_tokenizer(), "plan": PLAN, "log": quiet}
    with pytest.raises(kind, match=told):
        recover(**{**arguments, **given}, out=out / "none")
    assert not (out / "none").exists()


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(PlanError, "the plan is for 2 layers", tmp_path, plan=LayerPlan(("full", "streaming"), 4, 16))
    refused(PlanError, "no layer of the plan streams", tmp_path, plan=LayerPlan(("full",) * 3, 4, 16))
    heads = zigzag.HeadPlan(((True, False),) * 3, 4, 16)
    refused(PlanError, "a LayerPlan is needed, got HeadPlan", tmp_path, plan=heads)
    wide = LayerPlan(PLAN.kinds, 100, 300)
    refused(ArgumentError, "rows of 400 tokens lie within the plan's window of 400", tmp_path, plan=wide)
    refused(ArgumentError, "length must be at least", tmp_path, config=setting(length=200))
    refused(
        ArgumentError, r"no room for 4 codes 128 tokens .* give rows of \d+ tokens", tmp_path, config=setting(needles=4)
    )
    refused(ArgumentError, "recover: .* tokens are too few", tmp_path, config=setting(tokens=LENGTH))
    refused(ModelError, "float16 has no room", tmp_path, model=make().half())
    refused(ModelError, "already|runs a plan", tmp_path, model=zigzag.attach(make(), PLAN))
    scaled = tiny_granite(vocab_size=256, logits_scaling=2.0)
    refused(ModelError, "does more to its logits than its head", tmp_path, model=scaled)
    adapted = make()
    peft.get_peft_model(adapted, peft.LoraConfig(target_modules=["q_proj"]))
    refused(ModelError, "has adapters already", tmp_path, model=adapted)
    broken = make()
    with torch.no_grad():
        broken.model.norm.weight[0] = torch.nan
    refused(ModelError, "NaN or infinity", tmp_path, model=broken)
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    refused(ArgumentError, "needs PEFT: pip install", tmp_path)


def test_rows_that_just_fit(tmp_path: Path) -> None:
    """What the refusal asks for is enough, and one less is not."""
    plan, tokenizer = LayerPlan(PLAN.kinds, 4, 100), tiny_tokenizer()
    with pytest.raises(ArgumentError) as said:
        Maker(setting(needles=4), tokenizer, {}, 128, "cpu").check()
    least = int(re.findall(r"give rows of (\d+)", str(said.value))[0])
    Maker(setting(needles=4, length=least), tokenizer, {}, 128, "cpu").check()
    with pytest.raises(ArgumentError, match="no room"):
        Maker(setting(needles=4, length=least - 1), tokenizer, {}, 128, "cpu").check()
    assert plan.recent < 128


@pytest.mark.usefixtures("unjudged")
def test_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that takes as many steps as fit begins anew after those that were tried."""
    monkeypatch.setattr("zigzag.training.loop.WARM", 0)
    monkeypatch.setattr("zigzag.training.loop.TIMED", 1)
    config = setting(steps=50, rows=1, log_every=1, save_every=1, retrieval=0.0)
    recover(config, make(), tiny_tokenizer(), PLAN, tmp_path / "timed", seconds=0.0, log=quiet)
    first, line = files.read_log(tmp_path / "timed")
    assert first["config"]["steps"] == 1 == line["step"]
    recover(setting(steps=1, rows=1, retrieval=0.0), make(), tiny_tokenizer(), PLAN, tmp_path / "plain", log=quiet)
    one, other = (files.load_state(tmp_path / name)[0] for name in ("timed", "plain"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_command(tmp_path: Path) -> None:
    save_folder(make(), tiny_tokenizer(), tmp_path / "tiny")
    PLAN.save(tmp_path / "plan.json")
    small = "--steps 1 --rows 1 --length 400 --needles 1 --tokens 1000 --own 0 --judged 1 --learn norms+projections"
    given = ["recover", str(tmp_path / "plan.json"), "--model", str(tmp_path / "tiny"), *small.split()]
    made = CliRunner().invoke(app, [*given, "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert made.exit_code == 0 and "wrote" in made.output
    model, _ = load_model(tmp_path / "out" / "model")
    zigzag.attach(model, LayerPlan.load(tmp_path / "out" / "plan.json"))
    again = CliRunner().invoke(app, [*given, "--out", str(tmp_path / "out")])
    assert again.exit_code == 1 and "holds a run" in str(again.exception)
    file = CliRunner().invoke(app, [*given, "--out", str(tmp_path / "plan.json")])
    assert file.exit_code == 1 and "must be a folder" in str(file.exception)
