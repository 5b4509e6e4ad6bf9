"""The copy of a GGUF file's model: the same model and tokenizer, of the same file, and none where none can be."""

import os
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("gguf", reason="gguf is not installed")

from models import tiny_llama, tiny_tokenizer  # noqa: E402

from zigzag import ModelError, load_model  # noqa: E402
from zigzag.models import gguf_cache  # noqa: E402
from zigzag.models.gguf_cache import cached, remember  # noqa: E402

TEXT = "def area(width, height):\n    return width * height  # 3.14 naïve\n<|im_start|>user"


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def gguf(folder: Path, content: bytes = b"GGUF" * 1000) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(content)
    return path


def facts(loaded: tuple[Any, Any]) -> tuple[Any, ...]:
    """What must be equal, but for weights."""
    model, tokenizer = loaded
    config, generation = model.config.to_dict(), model.generation_config.to_dict()
    for name in ("architectures", "quantization_config", "dtype", "torch_dtype", "_name_or_path"):
        config.pop(name, None)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": TEXT}], tokenize=True, return_dict=False)
    ends = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id, len(tokenizer))
    return config, generation, tokenizer(TEXT).input_ids, chat, tokenizer.decode(chat), ends


def test_the_copy_is_the_same_model(own_cache: Path, short_smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SmolLM2 as transformers reads its file, as it is copied, and as the copy is read."""
    monkeypatch.setattr("zigzag.models.load.smollm2_path", lambda: short_smollm2)
    made = load_model("smollm2")
    copy = cached(short_smollm2)
    assert copy.is_dir() and copy.is_relative_to(own_cache)
    monkeypatch.setattr("zigzag.models.load._checked_gguf", None)  # from here on nothing reads the file itself
    again = load_model("smollm2")
    for name, weight in made[0].state_dict().items():
        assert bool((again[0].state_dict()[name] == weight).all()), name
    assert facts(made) == facts(again) and again[0].config._name_or_path == made[0].config._name_or_path
    half, _ = load_model("smollm2", dtype="bfloat16")
    one = "model.layers.3.mlp.up_proj.weight"
    assert bool((half.state_dict()[one] == made[0].state_dict()[one].bfloat16()).all())
    (copy / "model.safetensors").unlink()  # and anew: the models above have it mapped
    (copy / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError, match=f"read from {copy}"):
        load_model("smollm2")
    monkeypatch.undo()
    monkeypatch.setattr("zigzag.models.load.smollm2_path", lambda: short_smollm2)
    monkeypatch.setattr(gguf_cache, "LARGEST", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(own_cache / "none"))
    itself = load_model("smollm2")
    assert facts(itself) == facts(made) and not (own_cache / "none").exists()
    assert all(bool((itself[0].state_dict()[name] == weight).all()) for name, weight in made[0].state_dict().items())


def test_another_file_has_another_copy(tmp_path: Path, own_cache: Path) -> None:
    path = gguf(tmp_path)
    first = cached(path)
    assert first == cached(path)
    os.utime(path, ns=(1, 1))
    assert cached(path) != first
    found = {cached(gguf(tmp_path, content)) for content in (b"a" * 5_000_000, b"a" * 4_999_999 + b"b", b"a" * 10)}
    assert len(found) == 3
    other = set()
    for content in (b"a" * 5_000_000, b"b" + b"a" * 4_999_999, b"a" * 4_999_999 + b"b"):  # of one size and time
        os.utime(gguf(tmp_path, content), ns=(1, 1))
        other.add(cached(path))
    assert len(other) == 3


def test_where_it_cannot_be_written(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing half is left; a copy that another process has made meanwhile is taken."""
    path, model = gguf(tmp_path), tiny_llama(2)

    def full(*given: Any) -> None:
        given[2].mkdir()
        (given[2] / "half").write_text("x")
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(gguf_cache, "save_folder", full)
        assert remember(path, model, tiny_tokenizer()) is None
    assert not list((own_cache / "zigzag/gguf").iterdir())
    assert remember(path, model, tiny_tokenizer()) == cached(path)
    assert remember(path, model, tiny_tokenizer()) == cached(path)
    assert [folder.name for folder in (own_cache / "zigzag/gguf").iterdir()] == [cached(path).name]
