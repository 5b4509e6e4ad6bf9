"""A streamer of transformers' kind beside the loop: the prompt, each new token, and the end, whatever happens."""

from types import TracebackType
from typing import Any

import torch

from zigzag.reference.errors import ArgumentError


class Stream:
    """Hands tokens to `streamer`, which may be None; leaving the `with` block ends it, also by an error."""

    def __init__(self, streamer: Any) -> None:
        if streamer is not None and not all(callable(getattr(streamer, name, None)) for name in ("put", "end")):
            raise ArgumentError(f"generate: streamer must have put(tokens) and end(), got {type(streamer).__name__}")
        self.streamer = streamer

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.streamer is not None:
            self.streamer.end()

    def begin(self, rows: list[list[int]]) -> None:
        """The prompt [1, T]; ArgumentError for more rows than one."""
        if self.streamer is None:
            return
        if len(rows) != 1:
            raise ArgumentError(f"generate: a streamer takes one row, got {len(rows)}; use on_tokens for several")
        self.streamer.put(torch.tensor(rows))

    def put(self, tokens: list[int]) -> None:
        """New tokens, [1] at a time."""
        if self.streamer is not None:
            for token in tokens:
                self.streamer.put(torch.tensor([token]))
