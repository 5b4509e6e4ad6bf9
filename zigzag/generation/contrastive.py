"""Contrastive decoding: what the target finds likely, and a worse model, the amateur, does not."""

import math
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import DynamicCache

from zigzag.generation.drafting.vocabulary import MOST_PADDING, fitted, vocabulary_size
from zigzag.models.decoder import Decoder
from zigzag.reference.checks import as_real
from zigzag.reference.errors import ArgumentError, ModelError
from zigzag.running.host import execution_device
from zigzag.running.interception import interception_of
from zigzag.running.model_layers import layers_of
from zigzag.running.rope import check_lengths
from zigzag.running.twins import twin
from zigzag.running.weights import weights_state

PIECE = 2048  # tokens of one forward
REMEMBERED = 64  # of each row the last logits: a draft's nodes are asked about when drafted, and again when verified
PATIENCE = 256  # calls for each row that has a cache, more than there are nodes in a verification


class Contrastive:
    """(1 + strength) * log p - strength * log a of the tokens with p >= plausible * max(p), -inf for the others.

    p is the target's probability after the processors before this one, a the amateur's. A logits processor, given as
    `zigzag.generate(..., logits_processor=Contrastive(small))`: what is decoded is the law that it makes, greedily or
    drawn, and under a lossless rule no draft changes it, whoever drafts. The source's recipe is the amateur's own,
    `drafter=small`; they are drawn from its probabilities, cut to the plausible: its contrast with itself is itself.

    amateur: a transformers decoder with the target's vocabulary, but for padding. A token that it has not, or gives
        probability 0, keeps log p: there is nothing to contrast. It is run by itself, over a second set of modules that
        share its weights, so it may be the draft model, the target, or run a plan, meanwhile.
    strength: 0 or more; 0 leaves p, cut to the plausible
    plausible: in (0, 1]; 1 leaves the likeliest tokens alone

    Each row that is asked about has a KV cache of the amateur, into which only what differs from the text before is
    fed: memory as for a draft model of so many rows, and what a row that has ended held is given up after some calls.
    `reset()` gives up all. Each new text is a forward of one row: with the amateur as drafter it computes twice what it
    drafts.

    Raises ArgumentError for an amateur that cannot be one, and when asked about scores of another vocabulary;
    ModelError where its rotary embedding would depend on what was fed before.

    Sources: contrastive decoding (arXiv 2210.15097) with the formula of arXiv 2309.09117, whose defaults these are;
    speculative contrastive decoding (ACL 2024, arXiv 2311.08981).
    """

    stateful = False  # caches change when an answer comes, not what it is

    def __init__(self, amateur: Decoder, *, strength: float = 0.5, plausible: float = 0.1) -> None:
        factor, share = as_real(strength), as_real(plausible)
        if factor is None or not 0 <= factor < math.inf:
            raise ArgumentError(f"Contrastive: strength must be a finite number of at least 0, got {strength!r}")
        if share is None or not 0 < share <= 1:
            raise ArgumentError(f"Contrastive: plausible must be above 0 and at most 1, got {plausible!r}")
        self.strength, self.plausible = factor, share
        self._amateur = _Amateur(amateur)
        self._lock = Lock()  # calls of `generate` in two threads may share this

    def __call__(self, input_ids: Tensor, scores: Tensor, row: int = 0) -> Tensor:
        """The contrast [1, V] after the text `input_ids` [1, T] of a row."""
        if input_ids.dim() != 2 or len(input_ids) != 1 or not input_ids.numel() or len(scores) != 1:
            raise ArgumentError(
                f"Contrastive: the text [1, T] of one row and its scores [1, V] are needed, got "
                f"{list(input_ids.shape)} and {list(scores.shape)}; ask about each row by itself"
            )
        target = _log_probs(scores)
        with self._lock:
            logits = self._amateur.logits(row, input_ids[0].cpu().numpy(), scores.shape[1])
        amateur = _log_probs(logits.to(scores.device))[None]
        amateur = torch.where(amateur == -torch.inf, target, amateur)
        contrast = (1 + self.strength) * target - self.strength * amateur
        implausible = target < target.amax(dim=-1, keepdim=True) + math.log(self.plausible)
        return contrast.masked_fill(implausible, -torch.inf).to(scores.dtype)

    def reset(self) -> None:
        """Give up all caches; they are filled again when a text is asked about."""
        with self._lock:
            self._amateur.rows.clear()


class _Amateur:
    """The model, a second set of modules over its weights, and a cache of each row, the latest asked about last."""

    def __init__(self, model: Decoder) -> None:
        self.model = model
        _check_amateur(model)
        self.twin, self.device = twin(model), execution_device(model)
        self.size = vocabulary_size(model)
        self.rows: dict[int, _Row] = {}
        self.calls, self.state = 0, weights_state(model)

    def logits(self, row: int, text: NDArray[np.int64], size: int) -> Tensor:
        """[size] after the text."""
        _check_vocabulary(self.size, size)
        check_lengths(self.model, 1, len(text))
        self._look_at_weights()
        self.calls += 1
        held = self.rows.pop(row, None) or _Row()  # out of the way: what an error leaves in it nobody knows
        found = held.logits(self.twin, np.minimum(text, self.size - 1), self.device)
        held.asked = self.calls
        self.rows[row] = held
        self._forget()
        return fitted(found, size)

    def _look_at_weights(self) -> None:
        """Caches are those of the weights that filled them."""
        state = weights_state(self.model)
        if state == self.state:
            return
        if weights_state(self.twin) != state:
            raise ArgumentError(
                "Contrastive: the amateur has other modules or adapters than when this was made; make a new one"
            )
        self.rows.clear()
        self.state = state

    def _forget(self) -> None:
        """Rows that go on are asked about in each round, so one that was not for so long has ended."""
        for row in list(self.rows):
            if self.rows[row].asked >= self.calls - PATIENCE * len(self.rows):
                return
            del self.rows[row]


class _Row:
    """The tokens that a cache holds, and what the amateur said behind some of them."""

    def __init__(self) -> None:
        self.cache = DynamicCache()  # without windows, which could not be cropped; the model's masks have them
        self.tokens: NDArray[np.int64] = np.empty(0, np.int64)
        self.said: dict[int, Tensor] = {}  # by the number of tokens
        self.asked = 0

    def logits(self, model: Any, text: NDArray[np.int64], device: torch.device) -> Tensor:
        """[V] after the text; what is held stays where it goes on behind the text."""
        common = _common(self.tokens, text)
        if common < len(text) or len(text) not in self.said:
            self._cut(min(common, len(text) - 1))
            self._feed(model, text, device)
        return self.said[len(text)]

    def _cut(self, length: int) -> None:
        self.cache.crop(length - len(self.tokens))
        self.tokens = self.tokens[:length]
        self.said = {after: logits for after, logits in self.said.items() if after <= length}

    def _feed(self, model: Any, text: NDArray[np.int64], device: torch.device) -> None:
        with torch.inference_mode():
            for begin in range(len(self.tokens), len(text), PIECE):
                new = torch.tensor(text[None, begin : begin + PIECE], device=device)
                output = model(input_ids=new, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.tokens = text
        self.said[len(text)] = output.logits[0, -1]
        for after in list(self.said)[:-REMEMBERED]:
            del self.said[after]


def _common(old: NDArray[np.int64], new: NDArray[np.int64]) -> int:
    """Length of the common prefix."""
    most = min(len(old), len(new))
    differs = old[:most] != new[:most]
    return int(differs.argmax()) if differs.any() else most


def _log_probs(logits: Tensor) -> Tensor:
    return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(dim=-1)


def _check_amateur(model: Any) -> None:
    """ArgumentError for what has no cache that can be cropped, or cannot be run by itself."""
    try:
        layers, taken = layers_of(model), interception_of(model)
    except ModelError as error:
        raise ArgumentError(f"Contrastive: the amateur cannot be run over a cache that is cropped: {error}") from error
    if layers.others:
        raise ArgumentError(
            f"Contrastive: the amateur's cache must be one that can be cropped, but {layers.name} has layers with a "
            f"state ({', '.join(sorted(set(layers.others.values())))}); take a decoder with attention alone"
        )
    if taken is not None:
        raise ArgumentError(
            f"Contrastive: the amateur {taken.what}, and this must be made while its attention is its own: make it "
            f"before, or call zigzag.detach(model) first"
        )
    if any(weight.is_meta for weight in model.parameters()):
        raise ArgumentError("Contrastive: the amateur's weights must be in memory, got some on the meta device")


def _check_vocabulary(amateur: int, scores: int) -> None:
    small, large = sorted((amateur, scores))
    if small < large * (1 - MOST_PADDING):
        raise ArgumentError(
            f"Contrastive: the amateur has a vocabulary of {amateur} tokens, the scores are of {scores}; they must "
            f"share their tokenizer, and may differ by padding alone"
        )
