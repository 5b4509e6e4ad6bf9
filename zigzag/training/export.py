"""The trained model as a folder that `zigzag.load` and transformers read."""

import json
from pathlib import Path
from typing import Any

import torch

from zigzag.files.folders import replaced
from zigzag.models.checkpoint import save_checkpoint
from zigzag.training.config import TrainingConfig
from zigzag.training.model import TrainingModel
from zigzag.training.names import official
from zigzag.training.tokenizer import stop_ids


def config_json(config: TrainingConfig, tokenizer: Any) -> dict[str, Any]:
    """The content of config.json, in the spelling of the official checkpoints: RoPE as the last stage has it."""
    stops = stop_ids(tokenizer)
    return {
        **config.glm,
        "vocab_size": len(tokenizer),
        "rope_theta": config.stages[-1].rope_theta,
        "rope_scaling": None,
        "eos_token_id": stops,
        "pad_token_id": stops[0],
        "torch_dtype": "bfloat16",
    }


def export(model: TrainingModel, tokenizer: Any, config: TrainingConfig, folder: Path) -> None:
    """Write weights in bfloat16, configuration and tokenizer; an older model in the folder is replaced once all is
    there."""
    content = config_json(config, tokenizer)
    with replaced(folder) as new:
        save_checkpoint(new, official(model, torch.bfloat16), content)
        tokenizer.save_pretrained(new)
        stops = {key: content[key] for key in ("eos_token_id", "pad_token_id")}
        (new / "generation_config.json").write_text(json.dumps({**stops, "do_sample": False}, indent=2) + "\n")
