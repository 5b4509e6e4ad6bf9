"""The folder of a run: its checkpoint, from which it goes on bit for bit, and its log."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zigzag.reference.errors import ArgumentError, ModelError

CHECKPOINT, LOG, MODEL, TOKENIZER = "checkpoint.safetensors", "log.jsonl", "model", "tokenizer"
FORMAT = "zigzag-training-1"


def save_state(folder: Path, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """The tensors and, in the header, what else a run needs; whole or not at all."""
    from safetensors.torch import save_file

    part = folder / f".{CHECKPOINT}.part"
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(whole, str(part), {"run": json.dumps({"format": FORMAT, **meta})})
    os.replace(part, folder / CHECKPOINT)


def load_state(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(tensors, meta) of the run in a folder.

    Raises ModelError if there is no checkpoint, it is damaged, or it is not one of a training run.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / CHECKPOINT
    if not path.is_file():
        raise ModelError(f"training: --resume needs {path}, and there is none; start the run without --resume")
    try:
        with safe_open(str(path), framework="pt") as opened:
            meta = json.loads((opened.metadata() or {})["run"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
        if meta["format"] != FORMAT:
            raise ValueError(f"format {meta['format']!r}")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(
            f"training: {path} is no whole checkpoint of a training run ({type(error).__name__}: {error}); start the "
            f"run anew in another folder"
        ) from error
    return tensors, meta


def check_free(folder: Path) -> None:
    """ArgumentError if the folder holds a run that a new one would overwrite."""
    if any((folder / name).exists() for name in (CHECKPOINT, LOG, MODEL)):
        raise ArgumentError(f"training: {folder} holds a run; go on with --resume, or give another --out")


def write_line(folder: Path, line: dict[str, Any]) -> None:
    with open(folder / LOG, "a", encoding="utf-8") as log:
        log.write(json.dumps(line) + "\n")


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of the log; a last line that was cut off is left out."""
    lines = []
    for text in (folder / LOG).read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def cut_log(folder: Path, step: int) -> None:
    """Drop the lines of steps after the checkpoint's: they are made again."""
    if not (folder / LOG).exists():
        return
    kept = [line for line in read_log(folder) if line.get("step", 0) <= step and "finished" not in line]
    part = folder / f".{LOG}.part"
    part.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    os.replace(part, folder / LOG)
