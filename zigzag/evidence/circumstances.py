"""Under what a measurement was made: what results of one file must have in common."""

import os
import platform
from typing import Any

import torch
import transformers

from zigzag.models.decoder import Decoder


def conditions_of(model: Decoder) -> dict[str, Any]:
    """Model, device and versions."""
    cuda = model.device.type == "cuda"
    return {
        "model": getattr(model.config, "_name_or_path", ""),
        "device": f"one {torch.cuda.get_device_name()}" if cuda else f"{os.cpu_count()} CPU cores",
        "dtype": str(model.dtype).removeprefix("torch."),
        "python": platform.python_version(),
        "torch": torch.__version__.partition("+")[0],
        "transformers": transformers.__version__,
    }
