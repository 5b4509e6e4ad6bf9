"""Whole training runs, small and on the CPU: broken off and resumed, loaded, evaluated."""

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from glms import one_thread  # noqa: E402, F401
from trainings import small  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

import zigzag  # noqa: E402
from zigzag import ArgumentError, ModelError  # noqa: E402
from zigzag.models import glm  # noqa: E402
from zigzag.models.checkpoint import open_checkpoint  # noqa: E402
from zigzag.reference import glm as reference  # noqa: E402
from zigzag.training import state as files  # noqa: E402
from zigzag.training.config import TrainingConfig  # noqa: E402
from zigzag.training.evaluate import evaluate  # noqa: E402
from zigzag.training.tokenizer import read_tokenizer  # noqa: E402
from zigzag.training.train import train  # noqa: E402

TIMES = ("seconds", "tokens_per_second")


def quiet(text: str) -> None:
    """Nothing is shown."""


class Stopped(Exception):
    """What a test breaks a run off with."""


def broken_after(step: int) -> Any:
    def log(text: str) -> None:
        if f"step {step} of" in text:
            raise Stopped

    return log


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without a break."""
    out = tmp_path_factory.mktemp("whole")
    assert train(small(), out, log=quiet)
    return out


def without_times(out: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name not in TIMES} for line in files.read_log(out)]


def differing(one: Path, other: Path) -> list[str]:
    """Tensors of two checkpoints that are not equal bit for bit."""
    (first, _), (second, _) = files.load_state(one), files.load_state(other)
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]


@pytest.mark.parametrize("step", [12, 24], ids=["in the first stage", "in the last stage"])
def test_resumed_run_equals_the_unbroken_one(whole: Path, tmp_path: Path, step: int) -> None:
    """Weights, biases, optimizer, sums of the log, and the log itself, two steps of which were made twice."""
    with pytest.raises(Stopped):
        train(small(), tmp_path, log=broken_after(step))
    _, meta = files.load_state(tmp_path)
    assert meta["step"] == (step - 1) // 10 * 10  # the line comes before the checkpoint
    assert train(small(), tmp_path, resume=True, log=quiet)
    assert differing(whole, tmp_path) == []
    assert without_times(tmp_path) == without_times(whole)
    for name in sorted(path.name for path in (whole / files.MODEL).iterdir()):
        assert (tmp_path / files.MODEL / name).read_bytes() == (whole / files.MODEL / name).read_bytes(), name


def test_comparison_of_runs_can_fail(whole: Path, tmp_path: Path) -> None:
    tensors, meta = files.load_state(whole)
    tensors["optimizer.first.norm"] = tensors["optimizer.first.norm"] + 1e-7
    files.save_state(tmp_path, tensors, meta)
    assert differing(whole, tmp_path) == ["optimizer.first.norm"]


def test_loss_falls(whole: Path) -> None:
    """From about that of guessing, for each kind of token that both lines have, and the MTP layer's too."""
    lines = [line for line in files.read_log(whole) if "losses" in line]
    first, last = lines[0], lines[3]  # of the first stage
    assert first["step"] == 4 and last["step"] == 16
    for name, least in (("losses", 0.3), ("mtp_losses", 0.1)):
        assert {"text", "thinking", "direct"} <= first[name].keys() & last[name].keys()
        for kind in ("text", "thinking", "direct"):
            assert last[name][kind] < first[name][kind] - least, (name, kind)
    assert 5.5 < first["losses"]["text"] < 6.5  # log 512 = 6.24
    assert all(abs(sum(row) - 1) < 1e-2 for line in lines for row in line["load"])


def test_checkpoint_is_served(whole: Path) -> None:
    """`zigzag.load` takes it, and generates, with its MTP layer as drafter too; its logits are the reference's."""
    model, mtp = glm.load(whole / files.MODEL, dtype="float32")
    checkpoint = open_checkpoint(whole / files.MODEL)
    assert checkpoint.has_mtp and checkpoint.config.rope_theta == 1e5
    assert {str(checkpoint.torch(name).dtype) for name in checkpoint} == {"torch.bfloat16", "torch.float32"}
    tokenizer = read_tokenizer(whole / files.MODEL)
    prompt = zigzag.chat.thinking.chat_prompt(tokenizer, [{"role": "user", "content": "What is 1+2?"}], thinking=False)
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits
    true = reference.forward(checkpoint.config, checkpoint, [prompt]).logits
    assert float((logits.double() - torch.from_numpy(true)).abs().max()) < 1e-4
    plain = zigzag.generate(model, [prompt], temperature=0, max_new_tokens=8)
    drafter = zigzag.generation.drafting.MtpDrafter(mtp, stop=2)
    drafted = zigzag.generate(model, [prompt], temperature=0, max_new_tokens=8, drafter=drafter)
    assert plain.sequences == drafted.sequences and plain.new_tokens[0]
    assert model.generation_config.eos_token_id == checkpoint.config_dict["eos_token_id"]


def test_loading_for_plans(whole: Path) -> None:
    """`load_model`, as the command line does it."""
    model, tokenizer = zigzag.load_model(whole / files.MODEL)
    assert tokenizer.chat_template and model.config.num_hidden_layers == 3


def test_evaluation(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All parts are there; what was measured is not measured again, until the model is another."""
    monkeypatch.setattr("zigzag.training.evaluate.DRAFTED", 8)
    found = evaluate(whole, count=2, lengths=(480, 4096), log=quiet)
    assert set(found["retrieval"]["passkey"]) == set(found["retrieval"]["recall"]) == {"480"}
    assert all(0 <= found["arithmetic"][digits][mode] <= 1 for digits in "123" for mode in ("thinking", "direct"))
    assert set(found["drafting"]["text"]["mtp"]) == set(found["drafting"]["thinking"]["lookup"]) == set("1234")
    assert set(found["curves"]["layer"]) == set(found["curves"]["head"]) and found["curves"]["layers"] == 3
    assert found["text"]["full"] > 4 and found["copying"]["full"]["loss"] > 4
    card = (whole / files.MODEL / "README.md").read_text()
    parts = ("Data", "Cost", "Curves", "Evaluation", "Limits")
    assert all(f"## {part}" in card for part in parts) and "| passkey | 480 |" in card and "gate_gradient" in card
    lines: list[str] = []
    assert evaluate(whole, count=2, lengths=(480, 4096), log=lines.append) == found and len(lines) == 1
    assert json.loads((whole / "evaluation.json").read_text()) == found
    (whole / files.MODEL / "README.md").unlink()


def test_steps_are_fitted_into_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zigzag.training.train.MARGIN", 1e-3)  # of 600 seconds
    lines: list[str] = []
    assert train(small(), tmp_path, seconds=600, log=lines.append)
    steps = files.read_log(tmp_path)[0]["steps"]
    assert sum("ready in" in line for line in lines) == 2 and min(steps) > 1 and steps != [16, 8]
    assert files.load_state(tmp_path)[1]["step"] == sum(steps)


def test_time_that_is_over(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(small(), tmp_path, log=broken_after(12))
    assert not train(small(), tmp_path, resume=True, seconds=0, log=quiet)
    assert files.load_state(tmp_path)[1]["step"] == 11
    assert files.read_log(tmp_path)[-1]["finished"] is False


def test_timing_changes_nothing(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps that are run to be timed leave no trace."""
    monkeypatch.setattr("zigzag.training.train.fitted", lambda config, seconds, costs: planned_as(config))
    assert train(small(), tmp_path, seconds=600, log=quiet)
    assert differing(whole, tmp_path) == []


def planned_as(config: TrainingConfig) -> Any:
    from zigzag.training.schedule import planned

    return planned(config)


def test_what_cannot_be_resumed(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"--resume needs .*checkpoint.safetensors, and there is none; start the run"):
        train(small(), tmp_path, resume=True, log=quiet)
    content = (whole / files.CHECKPOINT).read_bytes()
    for broken in (content[:-7], content[:100], b"", b"no checkpoint at all"):
        (tmp_path / files.CHECKPOINT).write_bytes(broken)
        with pytest.raises(ModelError, match="is no whole checkpoint of a training run"):
            train(small(), tmp_path, resume=True, log=quiet)
    tensors, meta = files.load_state(whole)
    files.save_state(tmp_path, tensors, {**meta, "format": "other"})
    with pytest.raises(ModelError, match="format 'other'"):
        train(small(), tmp_path, resume=True, log=quiet)
    with pytest.raises(ModelError, match="was started with another configuration"):
        train(small(seed=1), whole, resume=True, log=quiet)
    (tmp_path / files.TOKENIZER).mkdir()
    (tmp_path / files.TOKENIZER / "tokenizer.json").write_bytes(
        (whole / files.TOKENIZER / "tokenizer.json").read_bytes()
    )
    for missing in ("model.q", "optimizer.momentum.q"):
        files.save_state(tmp_path, {name: t for name, t in tensors.items() if name != missing}, meta)
        with pytest.raises(ModelError, match=f"1 of {len(tensors)} tensors are missing or of another shape .{missing}"):
            train(small(), tmp_path, resume=True, log=quiet)


def test_a_run_is_not_overwritten(whole: Path) -> None:
    before = (whole / files.LOG).read_bytes()
    with pytest.raises(ArgumentError, match="holds a run; go on with --resume, or give another --out"):
        train(small(), whole, log=quiet)
    assert (whole / files.LOG).read_bytes() == before


def test_command_line(tmp_path: Path) -> None:
    import typer

    from zigzag.cli.train import main

    app = typer.Typer()
    app.command()(main)
    result = CliRunner().invoke(app, [str(tmp_path / "none.toml"), "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, ArgumentError) and "none.toml" in str(result.exception)
    config = tmp_path / "small.toml"
    config.write_text(toml(small(stages=[{**stage, "steps": 2} for stage in small().as_dict()["stages"]])))
    result = CliRunner().invoke(app, [str(config), "--out", str(tmp_path / "out"), "--no-evaluation"])
    assert result.exit_code == 0, result.output
    assert "step 4 of 4" in result.output and (tmp_path / "out" / files.MODEL / "config.json").exists()


def toml(config: TrainingConfig) -> str:
    """A configuration as a file."""
    content = config.as_dict()
    stages, tables = content.pop("stages"), {name: content.pop(name) for name in ("glm", "loss_weights")}
    lines = [f"{name} = {json.dumps(value)}" for name, value in content.items()]
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    for stage in stages:
        mix = stage.pop("mix")
        lines += ["[[stages]]", *(f"{key} = {json.dumps(value)}" for key, value in stage.items())]
        lines += ["[stages.mix]", *(f"{key} = {value}" for key, value in mix.items())]
    return "\n".join(lines)
