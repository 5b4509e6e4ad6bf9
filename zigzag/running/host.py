"""Taking over a model's attention for a while, so that several runners can run it, each under a plan of its own."""

import logging
from contextlib import ExitStack
from threading import get_ident
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd

from zigzag.models.decoder import Decoder
from zigzag.reference.errors import ModelError
from zigzag.running import fused_experts
from zigzag.running.changes import Changes
from zigzag.running.fused_modules import fused_modules
from zigzag.running.interception import NAME, Attend, Interception, attachment_of, check_keeps_a_cache
from zigzag.running.model_layers import layers_of
from zigzag.running.pieces import default_size
from zigzag.running.rope import first_piece

log = logging.getLogger("zigzag")
_BUSY = "is in the middle of zigzag.generate"


class Output(NamedTuple):
    """Of a forward: logits [B, n, V] of its last tokens, and the final states [B, T, hidden] of all."""

    logits: Tensor
    states: Tensor


class Host:
    """A model whose attention is zigzag's inside the `with` block; what was there before comes back afterwards.

    cuda_graphs: for `zigzag.running.runner.open_runner`
    prefill_chunk_size: most tokens of a forward, all of its rows together; None: see `zigzag.running.pieces`

    Raises ModelError if the model cannot be run here, and on entering where it is busy: in another call of `generate`,
    or being scored.
    """

    def __init__(self, model: Decoder, cuda_graphs: bool | None = None, prefill_chunk_size: int | None = None) -> None:
        self.model, self.cuda_graphs, self.prefill_chunk_size = model, cuda_graphs, prefill_chunk_size
        if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
            raise ModelError(
                "generate: the adapter puts virtual tokens before each prompt, which no draft knows; use the model's "
                "own generate, after zigzag.attach(model, plan)"
            )
        self.layers, self.config = layers_of(model), model.config.get_text_config(decoder=True)
        check_keeps_a_cache(model.get_decoder())
        _check_no_dropout(model)
        self.device = execution_device(model)
        self._attend: Attend | None = None
        self._states: Tensor | None = None

    def __enter__(self) -> "Host":
        with ExitStack() as stack:
            self._take(stack)
            self._thread = get_ident()
            if self.device.type in fused_experts.DEVICES:
                stack.enter_context(fused_modules(self.model))
                try:
                    stack.enter_context(fused_experts.fused_experts(self.model))
                except ModelError as error:  # experts of another kind stay on what they have
                    log.info("%s", error)
            stack.callback(self.model.get_decoder().register_forward_hook(self._remember).remove)
            self._held = stack.pop_all()
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Host":
        """Itself: a copy of a cache is one more cache of the same model."""
        return self

    def _take(self, stack: ExitStack) -> None:
        """The model's attention: lent by an attached plan, or taken."""
        attached = attachment_of(self.model)
        if attached is not None:
            stack.enter_context(attached.interception.lent(self._prepare, _BUSY))
        else:
            stack.callback(Interception(self.model, self._prepare, _BUSY).remove)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._states = None
        self._held.close()

    @property
    def may_capture(self) -> bool:
        """Whether steps may be CUDA graphs."""
        return self.device.type == "cuda" and self.cuda_graphs is not False

    def piece_size(self, longest: int) -> int:
        """Most tokens of a forward, where rows have so many in the end."""
        if self.prefill_chunk_size is not None:
            return self.prefill_chunk_size
        return default_size(self.config, self.model.dtype.itemsize, self.device, longest)

    def first_piece(self, longest: int) -> int:
        """Fewest tokens with which a row may begin, where rows have so many in the end."""
        return first_piece(self.config, longest)

    def forward(self, attend: Attend, changes: Changes, **inputs: Any) -> Output:
        """One forward of the model, changed so, with the attention `attend`."""
        self._attend = attend
        try:
            with changes.applied(self.model.get_decoder()):
                logits = self.model(**inputs).logits
        finally:
            self._attend = None
        states, self._states = self._states, None
        if states is None:
            raise ModelError(f"{type(self.model).__name__} did not call its own decoder: its states are needed")
        return Output(logits, states)

    def wait(self) -> None:
        """Until the device has done what it was given; not the whole device, on which another thread may capture."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def _remember(self, decoder: Any, args: tuple[Any, ...], output: Any) -> None:
        if get_ident() == self._thread:  # else a forward of before, which only ends now
            self._states = output.last_hidden_state

    def _prepare(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._attend is None or get_ident() != self._thread:
            raise ModelError(f"the model {_BUSY}: it cannot be called by itself, or by another thread, until that ends")
        kwargs[NAME] = self._attend


def _check_no_dropout(model: Decoder) -> None:
    """ModelError for a model that drops out: each forward would be of another model, and no draft could be judged."""
    for module in model.modules() if model.training else ():
        named = {name: value for name, value in vars(module).items() if name.endswith("dropout")}
        rates = [module.p] if isinstance(module, _DropoutNd) else [*named.values()]
        if any(isinstance(rate, float) and rate > 0 for rate in rates) and module.training:
            raise ModelError(
                f"generate: the model is in training mode and {type(module).__name__} drops out: call eval()"
            )


def execution_device(model: Decoder) -> torch.device:
    """Where the model's inputs go; of one that accelerate offloads, where its layers are computed.

    Raises ModelError where that cannot be known.
    """
    if model.device.type != "meta":
        return model.device
    hooks = [getattr(module, "_hf_hook", None) for module in (model, *model.modules())]
    devices = [getattr(hook, "execution_device", None) for hook in hooks]
    found = next((device for device in devices if device is not None), None)
    if found is None:
        raise ModelError("the model's weights are on the meta device: load them before it is run")
    return torch.device(found)
