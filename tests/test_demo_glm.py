"""The demonstration on a GLM-4.5 with an MTP layer: everything is shown, whatever the model has learnt."""

import io
import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from glms import one_thread  # noqa: E402, F401
from rich.console import Console  # noqa: E402
from trainings import small, tokenizer  # noqa: E402

from zigzag import LayerPlan, ModelError  # noqa: E402
from zigzag.cli import app as cli  # noqa: E402
from zigzag.cli import demo_glm  # noqa: E402
from zigzag.models import tiny_glm  # noqa: E402
from zigzag.models.checkpoint import open_checkpoint, save_checkpoint  # noqa: E402
from zigzag.models.load import glm_folder  # noqa: E402
from zigzag.reference.glm.config import GlmConfig  # noqa: E402
from zigzag.training.export import config_json, export  # noqa: E402
from zigzag.training.model import TrainingModel  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of the small configuration."""
    path, config = tmp_path_factory.mktemp("model") / "model", small()
    model = TrainingModel(GlmConfig.from_dict(config_json(config, tokenizer()))).initialise(0)
    export(model, tokenizer(), config, path)
    return path


def test_everything_is_shown(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"CALIBRATION_PROMPTS": 1, "PROOF_PROMPTS": 1, "SUMS": 2, "NEW_TOKENS": 12, "BUDGET": 4}.items():
        monkeypatch.setattr(demo_glm, name, value)
    console = Console(record=True, width=160, file=io.StringIO())
    plan = demo_glm.demo(folder, tmp_path, console, length=300)
    shown = console.export_text()
    for words in ("passkeys", "its cache after", "thinking", "direct", "with a budget of 4 tokens", "MTP layer"):
        assert words in shown, words
    assert "other tokens than without drafts" not in shown
    assert plan.num_layers == 3 and LayerPlan.load(tmp_path / "plan.json").map() == plan.map()


def test_which_models_it_is_for(folder: Path, tmp_path: Path) -> None:
    assert glm_folder(str(folder)) == folder
    assert glm_folder("smollm2") is None and glm_folder(str(tmp_path)) is None
    checkpoint = open_checkpoint(folder)
    main = {name: checkpoint.torch(name) for name in checkpoint if not name.startswith("model.layers.3.")}
    save_checkpoint(tmp_path / "main", main, checkpoint.config_dict)
    assert glm_folder(str(tmp_path / "main")) is None
    with pytest.raises(ModelError, match="must hold an MTP layer"):
        demo_glm.demo(tmp_path / "main", tmp_path, Console(quiet=True))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert glm_folder(str(tmp_path)) is None


def test_command_line_takes_it(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(demo_glm, "demo", lambda *args, **options: called.append((args[0], options)))
    cli.demo(model=str(folder), out=tmp_path, device="cpu")
    assert called == [(folder, {"device": "cpu"})]


def test_weights_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_glm, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(ModelError, match="tiny-glm: this installation holds no weights of it; train it"):
        glm_folder("tiny-glm")
    (tmp_path / "config.json").write_text("{}")
    assert glm_folder("tiny-glm") == tmp_path
