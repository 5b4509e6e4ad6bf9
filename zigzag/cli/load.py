"""Loading the model that a command names."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from zigzag.cli.progress import doing
from zigzag.models.decoder import CausalLM
from zigzag.models.sources import check_source
from zigzag.reference.errors import ZigzagError


def load(model: str, device: str) -> tuple[CausalLM, Any]:
    """The model and its tokenizer; ZigzagError where they cannot be loaded."""
    check_source(model)
    with doing(Console(), f"loading {model}"), _without_collecting():
        try:
            from transformers.utils import logging

            from zigzag.models.load import load_model
        except ImportError as error:
            raise ZigzagError(f"models need more: pip install 'zigzag-attention[models]' ({error})") from error
        logging.disable_progress_bar()
        return load_model(model, device=device)


@contextmanager
def _without_collecting() -> Iterator[None]:
    """Imports make hundreds of thousands of objects that stay: looking through them again and again costs a fifth."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
