"""What `zigzag generate` shows: the text as it comes, what its cache holds, a warning beyond the model's context."""

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from zigzag.defaults import MAX_NEW_TOKENS

HALF = "\ufffd"  # what a tokenizer writes for a character of which tokens are still to come


class Continuation:
    """The text of one row: in a terminal drawn anew, elsewhere printed piece by piece, as plain text."""

    def __init__(self, console: Console, tokenizer: Any) -> None:
        self.console, self.tokenizer = console, tokenizer
        self.tokens: list[int] = []
        self.printed = ""
        self.live = Live(console=console, refresh_per_second=12, vertical_overflow="visible")

    def __enter__(self) -> "Continuation":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self.live.stop()
        elif self.tokens:
            self._print(self._text())
            self.console.print()

    def show(self, row: int, tokens: list[int]) -> None:
        """`on_tokens` of generate."""
        self.tokens.extend(tokens)
        text = self._text()
        if self.console.is_terminal:
            self.live.update(Text(text))
        elif not text.endswith(HALF):
            self._print(text)

    def read(self, done: int, tokens: int) -> None:
        """`on_prefill` of generate."""
        if self.console.is_terminal and done < tokens:
            self.live.update(Text(f"reading the prompt: {done:,} of {tokens:,} tokens", style="dim"))

    def _text(self) -> str:
        text: str = self.tokenizer.decode(self.tokens, skip_special_tokens=True)
        return text

    def _print(self, text: str) -> None:
        if text.startswith(self.printed):  # a tokenizer may write earlier tokens otherwise once more are known
            self.console.print(Text(text[len(self.printed) :]), end="", soft_wrap=True)
            self.printed = text


def beyond(model: Any, prompt: int, new_tokens: int | None) -> str:
    """A warning where a prompt with its new tokens is longer than what the model was made for; else empty."""
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    most = new_tokens or getattr(model.generation_config, "max_new_tokens", None) or MAX_NEW_TOKENS
    if limit is None or prompt + most <= limit:
        return ""
    return (
        f"warning: {prompt:,} tokens of prompt and up to {most:,} new ones are beyond the model's context of {limit:,} "
        f"(max_position_embeddings), where its text may be worth nothing; give fewer, or another model"
    )


def cache_line(result: Any, model: Any, plan: Any) -> str:
    """What a row's cache holds beside what full attention needs, and why it may be more."""
    from zigzag.plans.layers import FULL, LayerPlan
    from zigzag.reference.errors import ModelError
    from zigzag.running.attach import cache_bytes, kv_size
    from zigzag.running.model_layers import layers_of

    held, tokens = cache_bytes(result.cache.cache), len(result.cache.tokens[0])
    try:
        size = kv_size(model)
    except ModelError:  # layers of a kind that nobody counts here
        return f"the cache holds {held:,} bytes"
    full = LayerPlan((FULL,) * len(layers_of(model).full), 1, 1).full_kv_bytes(tokens, **size)
    line = f"the cache holds {held:,} bytes; full attention needs {full:,} for these {tokens:,} tokens"
    if held <= full:
        return line
    why = "slots to take drafts back and for tokens to come" if plan is not None else "slots for tokens to come"
    saved = "; what a plan saves shows with longer texts" if plan is not None else ""
    return f"{line}: of a short text the spare slots are most ({why}){saved}"
