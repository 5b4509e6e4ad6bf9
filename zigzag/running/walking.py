"""A decoder whose layers are called one by one: what several forwards have in common is computed once.

The layers are the model's own modules, called with what the model itself gives them. That is looked up, not rewritten:
a forward whose layers hand on what they get shows what each is called with.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zigzag.models.decoder import Decoder
from zigzag.reference.errors import ModelError
from zigzag.running.changes import Changes
from zigzag.running.interception import NAME, Attend, attending, full_attention, intercepted
from zigzag.running.model_layers import decoder_of, layers_of

CHECKED = 64  # tokens on which a walk is compared with the model's own forward
OF_TOKENS = frozenset({"position_embeddings", "position_ids", "cache_position"})  # have an entry for each token


class Call(NamedTuple):
    """What a layer is called with besides its states."""

    args: tuple[Any, ...]
    options: dict[str, Any]


class Rows(NamedTuple):
    """Which tokens' states there are: the first `sinks`, and those from `first` on. (0, 0): all."""

    sinks: int
    first: int

    def of(self, states: Tensor, held: "Rows") -> Tensor:
        """Those of `states` [B, n, ...], which has the tokens `held`: at least these."""
        if self == held:
            return states
        begin = held.sinks + self.first - held.first
        return torch.cat((states[:, : self.sinks], states[:, begin:]), dim=1)


ALL = Rows(0, 0)


class Start(NamedTuple):
    """Prompts before the first layer: ids [B, T], states [B, T, hidden], and the calls of all layers."""

    ids: Tensor
    states: Tensor
    calls: tuple[Call, ...]


class Walker:
    """The layers of a decoder, to be called one by one; `walking` gives it."""

    def __init__(self, model: Decoder) -> None:
        decoder: Any = decoder_of(model)
        layers = getattr(decoder, "layers", None)
        if not isinstance(layers, nn.ModuleList):
            raise ModelError(f"{type(decoder).__name__} has no list of layers")
        self.model, self.decoder = model, decoder
        self.layers: Sequence[nn.Module] = list(layers)[: layers_of(model).num_layers]
        self._passing = Changes(skip=frozenset(range(len(self.layers))))

    def start(self, ids: Tensor) -> Start:
        """What the first layer gets for ids [B, T]; ModelError if something happens between layers."""
        calls: list[Call] = []
        states: list[Any] = []

        def record(layer: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
            states.append(args[0] if args else None)
            calls.append(Call(args[1:], options))

        with ExitStack() as stack:
            stack.enter_context(self._passing.applied(self.decoder))
            for layer in self.layers:
                stack.callback(layer.register_forward_pre_hook(record, with_kwargs=True).remove)
            self.model(input_ids=ids, use_cache=False, logits_to_keep=1)
        between = any(each is not states[0] for each in states)
        if len(calls) != len(self.layers) or between or not isinstance(states[0], Tensor):
            raise ModelError(f"{type(self.decoder).__name__} does more than to hand states from layer to layer")
        return Start(ids, states[0], tuple(calls))

    def layer(self, index: int, call: Call, states: Tensor, attend: Attend, rows: Rows = ALL) -> Tensor:
        """[B, n, hidden] behind layer `index`, given the states of the tokens `rows`; `attend` as in a forward."""
        options = {name: _of_rows(given, rows) if name in OF_TOKENS else given for name, given in call.options.items()}
        if NAME in options:
            options[NAME] = attend
        with attending(attend):
            output: Tensor = self.layers[index](states, *call.args, **options)
        return output

    def logits(self, ids: Tensor, states: Tensor, count: int) -> Tensor:
        """[B, count, V] by the model's own norm and head from the last tokens of `states`, behind the last layer."""
        with ExitStack() as stack:
            stack.enter_context(self._passing.applied(self.decoder))
            stack.callback(self.layers[-1].register_forward_hook(lambda *_: states).remove)
            logits: Tensor = self.model(
                input_ids=ids[:, -states.shape[1] :], use_cache=False, logits_to_keep=count
            ).logits
        return logits

    def check(self, ids: Tensor) -> None:
        """ModelError unless walking under full attention gives the very logits of the model's own forward."""
        ids = ids[:, :CHECKED]
        start = self.start(ids)
        states = start.states
        for index, call in enumerate(start.calls):
            states = self.layer(index, call, states, full_attention)
            if not isinstance(states, Tensor):
                raise ModelError(f"{type(self.layers[index]).__name__} gives {type(states).__name__}, not states alone")
        whole = self.model(input_ids=ids, use_cache=False, logits_to_keep=CHECKED).logits
        if not torch.equal(whole, self.logits(ids, states, CHECKED)):
            raise ModelError(f"the layers of {type(self.decoder).__name__}, called one by one, give other logits")


@contextmanager
def walking(model: Decoder, ids: Tensor) -> Iterator[Walker]:
    """Within the block the model's layers may be called one by one; it is left as it was found.

    ids: [B, T] on which it is first checked that this is the model's own forward

    Raises ModelError, before the block, where it is not; or where something has the model's attention.
    """
    with intercepted(model, full_attention):
        walker = Walker(model)
        walker.check(ids)
        yield walker


def may_leave_out(call: Call, length: int) -> bool:
    """Whether a layer can be called for some of the `length` tokens: nothing unknown has an entry for each."""
    if any(isinstance(given, Tensor) for given in call.args):
        return False
    for name, given in call.options.items():
        tensors = [each for each in (given if isinstance(given, tuple) else (given,)) if isinstance(each, Tensor)]
        if name in OF_TOKENS:
            known = all(each.dim() in (2, 3) and each.shape[1] == length for each in tensors)
        else:
            known = name == "attention_mask" or not tensors
        if not known:
            return False
    return True


def _of_rows(given: Any, rows: Rows) -> Any:
    if isinstance(given, tuple):
        return tuple(_of_rows(each, rows) for each in given)
    return rows.of(given, ALL) if isinstance(given, Tensor) else given
