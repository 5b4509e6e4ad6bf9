"""Loading the model that a command names."""

from typing import Any

from rich.console import Console

from zigzag.models.decoder import CausalLM
from zigzag.reference.errors import ZigzagError


def load(model: str, device: str) -> tuple[CausalLM, Any]:
    """The model and its tokenizer; ZigzagError where they cannot be loaded."""
    try:
        from transformers.utils import logging

        from zigzag.models.load import load_model
    except ImportError as error:
        raise ZigzagError(f"models need more: pip install 'zigzag-attention[models]' ({error})") from error
    logging.disable_progress_bar()
    with Console().status(f"loading {model}"):
        return load_model(model, device=device)
