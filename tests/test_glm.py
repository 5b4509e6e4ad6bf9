"""Loading a GLM-4.5 checkpoint with its MTP layer: against the reference on the same files."""

import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from glms import FIXED, official, one_thread, random_glm, random_mtp  # noqa: E402, F401
from transformers import DynamicCache  # noqa: E402

from zigzag import ModelError  # noqa: E402
from zigzag.models import glm  # noqa: E402
from zigzag.models.checkpoint import open_checkpoint, save_checkpoint  # noqa: E402
from zigzag.reference import glm as reference  # noqa: E402

IDS = np.random.default_rng(0).integers(0, 24, (2, 9))
NEXT = np.random.default_rng(1).integers(0, 24, (2, 9))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = random_glm(FIXED)
    save_checkpoint(tmp_path / "glm", official(model, random_mtp(model)), model.config.to_dict())
    return tmp_path / "glm"


def close(one, other: np.ndarray) -> bool:
    """Within float32's rounding of the largest number."""
    return float(np.abs(one.detach().double().numpy() - other).max()) < 1e-5 * max(1.0, np.abs(other).max())


def test_model_and_layer_equal_the_reference(folder: Path) -> None:
    """After loading, the files are not needed."""
    checkpoint = open_checkpoint(folder)
    true = reference.forward(checkpoint.config, checkpoint, IDS)
    true_mtp = reference.mtp_forward(checkpoint.config, checkpoint, true.hidden_states, NEXT)
    model, mtp = glm.load(folder, dtype="float32")
    shutil.rmtree(folder)
    with torch.no_grad():
        out = model(torch.from_numpy(IDS), output_hidden_states=True)
        made = mtp(torch.from_numpy(NEXT), hidden=out.hidden_states[-1], position_ids=torch.arange(9)[None])
    assert close(out.logits, true.logits)
    assert close(made.logits, true_mtp.logits) and close(made.last_hidden_state, true_mtp.hidden_states)
    assert not close(made.logits, true.logits)


def test_chained_drafts_equal_the_reference(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    true = reference.mtp_draft(checkpoint.config, checkpoint, IDS, NEXT[:, 0], 3)
    model, mtp = glm.load(folder, dtype="float32")
    tokens = torch.from_numpy(np.concatenate([IDS[:, 1:], NEXT[:, :1]], axis=1))
    cache, positions, drafts = DynamicCache(), torch.arange(9)[None], []
    with torch.no_grad():
        states = model(torch.from_numpy(IDS), output_hidden_states=True).hidden_states[-1]
        for _ in range(3):
            made = mtp(tokens, hidden=states, position_ids=positions, past_key_values=cache)
            tokens, states = made.logits[:, -1:].argmax(-1), made.last_hidden_state[:, -1:]
            positions = positions[:, -1:] + 1
            drafts.append(tokens)
    assert torch.cat(drafts, dim=1).tolist() == true.tolist()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_routing_biases_stay_float32(folder: Path, dtype: str) -> None:
    checkpoint = open_checkpoint(folder)
    model, mtp = glm.load(folder, dtype=dtype)
    blocks = {1: model.model.layers[1], 2: model.model.layers[2], 3: mtp.block}
    gates = {layer: block.mlp.gate for layer, block in blocks.items()}
    for layer, gate in gates.items():
        bias = gate.e_score_correction_bias
        assert bias.dtype == torch.float32
        assert torch.equal(bias, checkpoint.torch(f"model.layers.{layer}.{glm.BIAS}"))
        assert gate.weight.dtype == getattr(torch, dtype)
    assert {parameter.dtype for parameter in mtp.parameters()} == {getattr(torch, dtype)}


def test_embedding_and_head_are_shared(folder: Path) -> None:
    model, mtp = glm.load(folder)
    assert mtp.embed_tokens is model.model.embed_tokens and mtp.lm_head is model.lm_head


def test_checkpoint_without_mtp(tmp_path: Path) -> None:
    model = random_glm(FIXED)
    model.save_pretrained(tmp_path)
    read, mtp = glm.load(tmp_path, dtype="float32")
    with torch.no_grad():
        theirs = model(torch.from_numpy(IDS)).logits.double().numpy()
        assert mtp is None and close(read(torch.from_numpy(IDS)).logits, theirs)


def test_bad_arguments(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"a JSON file is needed, there is no file .*config.json"):
        glm.load(tmp_path)
