"""Taking over a model's attention for a while, so that several runners can run it, each under a plan of its own."""

import logging
from contextlib import ExitStack
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zigzag.models.decoder import Decoder
from zigzag.reference.errors import CacheError, ModelError
from zigzag.running import attach, few_token_experts
from zigzag.running.fused_modules import fused_modules
from zigzag.running.interception import NAME, Attend, Interception, attachment_of, decoder_config

log = logging.getLogger("zigzag")


class Output(NamedTuple):
    """Of a forward: logits [B, n, V] of its last tokens, and the final states [B, T, hidden] of all."""

    logits: Tensor
    states: Tensor


class Host:
    """A model whose attention is zigzag's inside the `with` block; an attached plan comes back afterwards.

    cuda_graphs: for `zigzag.running.runner.open_runner`
    """

    def __init__(self, model: Decoder, cuda_graphs: bool | None = None) -> None:
        self.model, self.config, self.cuda_graphs = model, decoder_config(model), cuda_graphs
        self._attend: Attend | None = None
        self._states: Tensor | None = None

    def __enter__(self) -> "Host":
        self._attached = attachment_of(self.model)
        attach.detach(self.model)
        self._interception = Interception(self.model, self._prepare)
        self._faster = ExitStack()
        if self.model.device.type in few_token_experts.DEVICES and not is_spread():
            self._faster.enter_context(fused_modules(self.model))
            try:
                self._faster.enter_context(few_token_experts.few_token_experts(self.model))
            except ModelError as error:  # experts of another kind stay on what they have
                log.info("%s", error)
        self._hook = self.model.get_decoder().register_forward_hook(self._remember)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._faster.close()
        self._interception.remove()
        self._hook.remove()
        self._states = None
        if self._attached is not None:
            attach.attach(self.model, self._attached.plan, spare=self._attached.spare)

    def forward(self, attend: Attend, **inputs: Any) -> Output:
        """One forward of the model with the attention `attend`."""
        self._attend = attend
        try:
            logits = self.model(**inputs).logits
        finally:
            self._attend = None
        states, self._states = self._states, None
        if states is None:
            raise ModelError(f"{type(self.model).__name__} did not call its own decoder: its states are needed")
        return Output(logits, states)

    def _remember(self, decoder: Any, args: tuple[Any, ...], output: Any) -> None:
        self._states = output.last_hidden_state

    def _prepare(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._attend is None:
            raise CacheError("the model is in the middle of zigzag.generate: it cannot be called by itself now")
        kwargs[NAME] = self._attend


def is_spread() -> bool:
    """Whether this is one of several processes, over which a model may be spread."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()
