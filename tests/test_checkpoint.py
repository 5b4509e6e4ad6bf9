"""GLM-4.5 checkpoints: bytes survive, transformers reads what is written, and one error tells all that is wrong."""

import json
import pickle
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from glms import FIXED, glm_options, official, one_thread, random_glm, random_mtp  # noqa: E402, F401
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import Glm4MoeConfig, Glm4MoeForCausalLM  # noqa: E402

from zigzag import ModelError  # noqa: E402
from zigzag.models import checkpoint  # noqa: E402
from zigzag.models.checkpoint import INDEX, open_checkpoint, save_checkpoint  # noqa: E402
from zigzag.reference import glm  # noqa: E402

DTYPES = [torch.bfloat16, torch.float32, torch.float16, torch.float64]
SHARD = 4000  # bytes: several shards even of a tiny model
BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"
HEAD = "lm_head.weight"


def random_bytes(tensors: dict, seed: int) -> dict:
    """Tensors of these names and shapes, of random dtypes and random bytes: NaNs and infinities too."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for number, (name, tensor) in enumerate(tensors.items()):
        size = tensor.numel() * DTYPES[(number + seed) % 4].itemsize
        data = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)
        made[name] = data.view(DTYPES[(number + seed) % 4]).reshape(tensor.shape)
    return made


def with_mtp(options: dict, copies: bool, seed: int = 0) -> tuple[Glm4MoeForCausalLM, dict]:
    """A model and its official weights with the MTP layer, which may carry copies of embedding and head."""
    model = random_glm(options, seed)
    tensors = official(model, random_mtp(model, seed + 1))
    if copies:
        layer = f"model.layers.{options['num_hidden_layers']}"
        tensors[f"{layer}.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors[f"{layer}.shared_head.head.weight"] = model.lm_head.weight.detach().clone()
    return model, tensors


def as_bytes(tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def read_by_safetensors(folder: Path) -> dict:
    """All tensors of the folder, through the index, by the library alone."""
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    shards = {file: load_file(folder / file) for file in set(weight_map.values())}
    assert {name: file for file, shard in shards.items() for name in shard} == weight_map
    return {name: shards[file][name] for name, file in weight_map.items()}


def assert_same(found: dict, true: dict) -> None:
    assert found.keys() == true.keys()
    for name, tensor in true.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert as_bytes(found[name]) == as_bytes(tensor), name


@pytest.mark.parametrize("change", [torch.nan, -1.0, None, "dtype", "name"], ids=str)
def test_comparison_can_fail(change) -> None:
    one = {"a": torch.zeros(3), "b": torch.full((2,), torch.nan).bfloat16()}
    assert_same({name: tensor.clone() for name, tensor in one.items()}, one)
    two = {name: tensor.clone() for name, tensor in one.items()}
    if change is None:
        two["b"].view(torch.int16)[1] += 1  # another NaN
    elif change == "dtype":
        two["a"] = two["a"].view(torch.int32)
    elif change == "name":
        two["c"] = two.pop("a")
    else:
        two["a"][1] = change
    with pytest.raises(AssertionError):
        assert_same(two, one)


@settings(max_examples=25)
@given(
    options=glm_options(),
    seed=st.integers(0, 2**16),
    kind=st.sampled_from(["plain", "mtp", "mtp with copies"]),
    shard=st.sampled_from([1, SHARD, 10**9]),
)
def test_bytes_survive(options: dict, seed: int, kind: str, shard: int) -> None:
    model, tensors = with_mtp(options, copies=kind == "mtp with copies")
    tensors = random_bytes(official(model) if kind == "plain" else tensors, seed)
    config = Glm4MoeConfig(**options).to_dict()
    with tempfile.TemporaryDirectory() as folder:
        one, two = Path(folder) / "one", Path(folder) / "two"
        save_checkpoint(one, tensors, config, shard_bytes=shard)
        assert_same(read_by_safetensors(one), tensors)
        opened = open_checkpoint(one)
        assert opened.config == glm.GlmConfig.from_dict(config) and opened.has_mtp == (kind != "plain")
        assert_same({name: opened.torch(name) for name in opened}, tensors)
        for name, tensor in tensors.items():
            assert opened.spec(name).shape == tensor.shape == opened[name].shape
            assert np.array_equal(opened[name], tensor.double().numpy(), equal_nan=True), name
        save_checkpoint(two, opened, shard_bytes=SHARD)
        assert_same(read_by_safetensors(two), tensors)
        assert json.loads((two / "config.json").read_text()) == json.loads(json.dumps(config))


def fused_state(model: Glm4MoeForCausalLM, dtype: torch.dtype) -> dict:
    state = {name: tensor.detach().to(dtype).clone() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del state[HEAD]
    return state


@settings(max_examples=15)
@given(options=glm_options(), seed=st.integers(0, 2**16), dtype=st.sampled_from(DTYPES))
def test_fused_experts(options: dict, seed: int, dtype: torch.dtype) -> None:
    """Fused names in and out; in between, and in official files, the experts one by one."""
    model = random_glm(options, seed)
    fused, config = fused_state(model, dtype), model.config.to_dict()
    apart = {name: tensor.to(dtype) for name, tensor in official(model).items()}
    with tempfile.TemporaryDirectory() as folder:
        one, two, three = (Path(folder) / name for name in ("one", "two", "three"))
        save_checkpoint(one, apart, config, fused=True, shard_bytes=SHARD)
        assert_same(read_by_safetensors(one), fused)
        opened = open_checkpoint(one)
        assert_same({name: opened.torch(name) for name in opened}, apart)
        assert all(np.array_equal(opened[name], apart[name].double().numpy()) for name in opened)
        assert all(opened.spec(name).shape == apart[name].shape for name in opened)
        save_checkpoint(two, opened)
        assert_same(read_by_safetensors(two), apart)
        save_checkpoint(three, fused, config)  # given fused, written official
        assert_same(read_by_safetensors(three), apart)


@pytest.mark.parametrize("index", [True, False], ids=["shards", "one file"])
def test_what_transformers_writes(index: bool, tmp_path: Path) -> None:
    model = random_glm(FIXED)
    model.save_pretrained(tmp_path, max_shard_size=20_000 if index else 10**9)
    assert (tmp_path / INDEX).exists() == index
    opened = open_checkpoint(tmp_path)
    assert_same({name: opened.torch(name) for name in opened}, official(model))
    assert not opened.has_mtp
    ids = np.arange(10)[None]
    with torch.no_grad():
        theirs = model(torch.from_numpy(ids)).logits.numpy()
    assert np.abs(glm.forward(opened.config, opened, ids).logits - theirs).max() < 1e-5 * np.abs(theirs).max()


def test_transformers_reads_what_is_written(tmp_path: Path) -> None:
    """bfloat16 with a float32 routing bias, as official checkpoints are."""
    model, tensors = with_mtp(FIXED, copies=True)
    tensors = {n: t if n.endswith("correction_bias") else t.bfloat16() for n, t in tensors.items()}
    save_checkpoint(tmp_path / "new", tensors, {**model.config.to_dict(), "dtype": "bfloat16"}, shard_bytes=SHARD)
    read = Glm4MoeForCausalLM.from_pretrained(tmp_path / "new")
    main = {name: tensor for name, tensor in tensors.items() if not name.startswith("model.layers.3.")}
    assert_same(official(read), main)


def arrays(tensors: dict) -> dict:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def test_numpy_arrays_of_either_byte_order(tmp_path: Path) -> None:
    model = random_glm(FIXED)
    swapped = {name: array.astype(array.dtype.newbyteorder(">")) for name, array in arrays(official(model)).items()}
    save_checkpoint(tmp_path / "new", swapped, FIXED)
    assert_same(read_by_safetensors(tmp_path / "new"), official(model))


# What is wrong with a folder, as a change of it, and words of the error.


def tensors_of(change: Callable[[dict], dict]) -> Callable[[Path], None]:
    """A changed set of tensors in every shard that they lie in, index included."""

    def change_folder(folder: Path) -> None:
        tensors = change(read_by_safetensors(folder))
        for file in folder.glob("*.safetensors"):
            file.unlink()
        save_file(tensors, folder / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
        weight_map = dict.fromkeys(tensors, "model-00001-of-00001.safetensors")
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))

    return change_folder


def without(*parts: str) -> Callable[[Path], None]:
    return tensors_of(lambda t: {n: tensor for n, tensor in t.items() if not any(part in n for part in parts)})


def cut(folder: Path, size: int) -> None:
    shard = min(folder.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:size])


def index(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def change_index(folder: Path) -> None:
        content = json.loads((folder / INDEX).read_text())
        (folder / INDEX).write_text(json.dumps(change(content)))

    return change_index


def config(**changes) -> Callable[[Path], None]:
    def change_config(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**content, **changes}))

    return change_config


def unlisted(content: dict) -> dict:
    del content["weight_map"][BIAS]
    return content


def moved(content: dict) -> dict:
    content["weight_map"][HEAD] = "../other.safetensors"
    return content


BAD = {
    "missing": (without(BIAS, HEAD), rf"2 missing \({HEAD}, {BIAS}\)$"),
    "experts missing": (
        without(".experts.3."),
        r"9 missing \(model\S+\.3\.gate_proj.weight, \S+, \S+, \S+, \S+ and 4 more\)$",
    ),
    "half an MTP layer": (without("hnorm", "model.layers.3.mlp.gate."), r"3 missing \(.*model.layers.3.hnorm.weight"),
    "extra": (tensors_of(lambda t: {**t, "extra": torch.zeros(2)}), r"1 extra \(extra\)$"),
    "MTP without a layer for it": (config(num_nextn_predict_layers=0), r"\d+ extra \(model.layers.3.* and \d+ more\)$"),
    "misshapen": (
        tensors_of(lambda t: {**t, HEAD: t[HEAD][:3].clone(), BIAS: t[BIAS][None].clone()}),
        r"2 of another shape \(.*lm_head.weight is \[3, 16\], must be \[24, 16\]",
    ),
    "integers": (tensors_of(lambda t: {**t, BIAS: t[BIAS].long()}), rf"1 of an unusable dtype \({BIAS} is I64\)$"),
    "all at once": (
        tensors_of(lambda t: {"extra": t.pop(HEAD), **t, BIAS: t[BIAS][:2].clone()}),
        r"1 missing \(lm_head.weight\); 1 extra \(extra\); 1 of another shape \(.*is \[2\], must be \[16\]\)$",
    ),
    "cut in the header": (lambda f: cut(f, 20), r"1 files unreadable, with \d+ tensors \(model-00001-of-\d+.saf.*\)$"),
    "cut in the data": (lambda f: cut(f, -1), r"1 files unreadable, .*\(model-00001-of-.*not fully covered\)$"),
    "empty file": (lambda f: cut(f, 0), r"1 files unreadable, .*\(model-00001-of-\d+.safetensors: .*\)$"),
    "no file": (lambda f: min(f.glob("*.safetensors")).unlink(), r"1 files unreadable, with \d+ tensors \(model-00001"),
    "unlisted": (index(unlisted), rf"1 missing \({BIAS}\); 1 extra \({BIAS} of model-\d+-of-\d+.safetensors\)$"),
    "outside": (index(moved), "lm_head.weight must lie in a file of the same folder, got '../other.safetensors'"),
    "empty index": (index(lambda content: {}), "weight_map must be an object of names and files"),
    "index of another kind": (index(lambda content: [1]), f"{INDEX}: a JSON object is needed, got list"),
    "no JSON": (lambda f: (f / INDEX).write_text("{"), f"{INDEX}: a JSON file is needed, got JSONDecodeError"),
    "no config": (lambda f: (f / "config.json").unlink(), "a JSON file is needed, there is no file .*config.json"),
    "config of another model": (config(model_type="llama"), "GlmConfig: model_type must be glm4_moe, got 'llama'"),
    "quantised": (config(quantization_config={"bits": 8}), "the weights are quantised"),
    "no weights": (
        lambda f: [file.unlink() for file in [f / INDEX, *f.glob("*.safetensors")]],
        f"{INDEX} or model.safetensors is needed, got neither",
    ),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "checkpoint"
    model, tensors = with_mtp(FIXED, copies=True)
    save_checkpoint(folder, tensors, model.config.to_dict(), shard_bytes=SHARD)
    return folder


@pytest.mark.parametrize("name", BAD)
def test_bad_folders(name: str, good: Path, tmp_path: Path) -> None:
    for file in good.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    open_checkpoint(tmp_path)
    change, words = BAD[name]
    change(tmp_path)
    with pytest.raises(ModelError, match=words):
        open_checkpoint(tmp_path)


EXPLODED = []


def explode() -> None:
    EXPLODED.append(True)


class Bomb:
    """Tells when it is unpickled."""

    def __reduce__(self):
        return explode, ()


@pytest.mark.parametrize("suffix", ["bin", "pt"])
def test_pickled_weights_are_refused(suffix: str, good: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((good / "config.json").read_bytes())
    (tmp_path / f"pytorch_model.{suffix}").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ModelError, match=rf"got pickled weights \(pytorch_model.{suffix}\), which are never read"):
        open_checkpoint(tmp_path)
    assert EXPLODED == []
    pickle.loads((tmp_path / f"pytorch_model.{suffix}").read_bytes())
    assert EXPLODED.pop()  # the bomb works


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = checkpoint.files.write_file, []

    def fails_at_the_third(file: Path, tensors: dict) -> None:
        if len(written) == 2:
            raise OSError("disk full")
        write(file, tensors)
        written.append(file)

    monkeypatch.setattr(checkpoint.files, "write_file", fails_at_the_third)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(tmp_path / "new", official(random_glm(FIXED)), FIXED, shard_bytes=SHARD)
    assert len(written) == 2 and list(tmp_path.iterdir()) == []


def test_bad_arguments_of_save(tmp_path: Path) -> None:
    tensors = official(random_glm(FIXED))
    with pytest.raises(ModelError, match=r"save_checkpoint: what is given does not fit .* 1 missing"):
        save_checkpoint(tmp_path / "new", {n: t for n, t in tensors.items() if n != HEAD}, FIXED)
    with pytest.raises(ModelError, match=r"1 of an unusable dtype \(lm_head.weight is int64\)"):
        save_checkpoint(tmp_path / "new", {**tensors, HEAD: tensors[HEAD].long()}, FIXED)
    with pytest.raises(ModelError, match="save_checkpoint: config is needed"):
        save_checkpoint(tmp_path / "new", tensors)
    down = "model.layers.1.mlp.experts.0.down_proj.weight"
    with pytest.raises(ModelError, match="different dtypes cannot be joined: BF16, F32"):
        save_checkpoint(tmp_path / "new", {**tensors, down: tensors[down].bfloat16()}, FIXED, fused=True)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old").mkdir()
    save_checkpoint(tmp_path / "old", tensors, FIXED)  # an empty folder is free
    with pytest.raises(ModelError, match="is there already and not empty"):
        save_checkpoint(tmp_path / "old", tensors, FIXED)
    assert_same(read_by_safetensors(tmp_path / "old"), tensors)


def test_nothing_is_read_before_it_is_used(tmp_path: Path) -> None:
    """A table of 2 GiB, a hole in the file: opened, checked and looked into with little memory."""
    rows = 2**26
    options = {**FIXED, "vocab_size": rows, "num_hidden_layers": 1}
    tensors = {n: t.bfloat16() for n, t in official(random_glm({**FIXED, "num_hidden_layers": 1})).items()}
    header, end = {}, 0
    for name, tensor in tensors.items():
        shape = [rows, 16] if tensor.shape[0] == 24 and name in (HEAD, "model.embed_tokens.weight") else [*tensor.shape]
        begin, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    (tmp_path / "config.json").write_text(json.dumps(options))
    tracemalloc.start()
    opened = open_checkpoint(tmp_path)
    assert opened.stored(HEAD).num_bytes == 2**31 and opened.torch(HEAD)[rows // 2].sum() == 0
    assert not opened["model.norm.weight"].any()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22
