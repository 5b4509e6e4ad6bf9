"""The next round's forward, given to the device before the host knows the token that is fed. For rounds without drafts.

Else the device has nothing to do while the host reads a token, commits it and launches a step: some 0.3 ms of each.
The token is on the device as soon as it is drawn, and where it goes is known, so the forward needs nothing from the
host. It is in vain, and taken back, where a row turns out to be done. docs/generation.md says when.
"""

from torch import Tensor

from zigzag.running.runner import Runner


class Ahead:
    """A forward under way, of one token a row. wanted: whether the call's rounds are such that there may be one."""

    def __init__(self, runner: Runner, *, wanted: bool) -> None:
        self.runner, self.may = runner, wanted and runner.feeds_ahead
        self._logits: Tensor | None = None

    @property
    def fed(self) -> int:
        """Tokens of each row that are fed and that no round has judged yet."""
        return 0 if self._logits is None else 1

    def begin(self, tokens: Tensor | None) -> None:
        """Feed tokens [B, 1] that nobody has read; -1, which no model has, stands where there is none."""
        if self.may and tokens is not None:
            self._logits = self.runner.feed(tokens.clamp(min=0)).logits

    def take(self) -> Tensor | None:
        """The logits [B, 1, V] of the coming round, if its forward is under way."""
        logits, self._logits = self._logits, None
        return logits

    def drop(self) -> None:
        """Take the tokens back."""
        if self._logits is not None:
            self._logits = None
            nothing: list[list[int]] = [[] for _ in self.runner.tokens]
            self.runner.keep(nothing, nothing)
