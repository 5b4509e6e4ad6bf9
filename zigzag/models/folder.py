"""A model as a folder that other engines read: weights in safetensors, configuration, tokenizer."""

from pathlib import Path
from typing import Any

from zigzag.reference.errors import ModelError


def save_folder(model: Any, tokenizer: Any, folder: str | Path) -> None:
    """Write what `load_model` gave, also where it came from a GGUF file: its weights are no longer quantized then.

    model: of transformers; folder: made if need be; one that holds anything is refused

    Raises ModelError for a folder in use.
    """
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ModelError(f"save_folder: {path} is there and not empty: give another folder, or empty it")
    quantizer, quantized = vars(model).pop("hf_quantizer", None), getattr(model.config, "quantization_config", None)
    if quantized is not None:
        del model.config.quantization_config
    try:
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
    finally:
        if quantizer is not None:
            model.hf_quantizer = quantizer
        if quantized is not None:
            model.config.quantization_config = quantized
