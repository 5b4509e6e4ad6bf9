"""A tokenizer for `zigzag.measuring.prompts` that need not split the filler's sentences again."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Ids = tuple[int, ...]


class Encoded(NamedTuple):
    """What a call gives, as transformers' tokenizers name it."""

    input_ids: Ids


class RememberingTokenizer:
    """The same tokens as its backend's: of known texts out of memory, of all else by the backend.

    A prompt of 16,384 tokens is some 1,300 sentences out of 38,400, so nearly all of its time would go into splitting
    what was split before. Nothing is added to the memory, so it does not grow.

    backend: of the library tokenizers, without tokens that it puts around a text
    known: tokens by text, as the backend gives them
    """

    def __init__(self, backend: Any, known: Mapping[str, Ids]) -> None:
        self._backend, self._known = backend, dict(known)

    def __call__(self, text: str, *, add_special_tokens: bool) -> Encoded:
        known = self._known.get(text)
        return Encoded(
            tuple(self._backend.encode(text, add_special_tokens=add_special_tokens).ids) if known is None else known
        )

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._backend.decode(list(ids), skip_special_tokens=False)
        return text
