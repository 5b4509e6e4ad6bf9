"""A copy of a GGUF file's model in transformers' form, since reading a GGUF file takes transformers a minute.

It lies below $XDG_CACHE_HOME/zigzag/gguf, or ~/.cache/zigzag/gguf, in single precision, so that nothing is lost. Where
it cannot be written, the file is read each time.
"""

import hashlib
import logging
import os
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

from zigzag.models.folder import save_folder

log = logging.getLogger("zigzag")
LARGEST = 2 << 30  # bytes of a copy: for a larger model the time is not worth the room
SEEN = 1 << 20  # bytes of the file's beginning and of its end that tell it from others


def cached(path: Path) -> Path:
    """Where a GGUF file's copy is, or would be: by its size, time, beginning and end, and transformers' version."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    facts = path.stat()
    found = hashlib.sha256(f"{facts.st_size} {facts.st_mtime_ns} {version('transformers')} {version('gguf')}".encode())
    with open(path, "rb") as file:
        found.update(file.read(SEEN))
        file.seek(max(0, facts.st_size - SEEN))
        found.update(file.read(SEEN))
    return base / "zigzag" / "gguf" / f"{path.stem}-{found.hexdigest()[:16]}"


def remember(path: Path, model: Any, tokenizer: Any) -> Path | None:
    """Write the copy, whole or not at all; None where it cannot be written.

    model: in single precision
    """
    folder = cached(path)
    part = folder.with_name(f".{folder.name}.{uuid4().hex}.part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        save_folder(model, tokenizer, part)
        os.replace(part, folder)  # another process may have been faster: then its copy stays
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        if not folder.is_dir():
            log.info("no copy of %s: %s", path.name, error)
            return None
    return folder
