"""How zigzag gets into a transformers model: its public extension points and two hooks on the decoder.

One attention function is registered with transformers as "zigzag". It does nothing by itself: before each forward a
hook leaves an *attend* callable for it. Running a plan, scoring heads and masking heads are three such callables.
The callable travels with the forward's keyword arguments, so that a layer that is computed again for its gradient finds
it; for models that do not pass those on, the hook also leaves it for the thread that runs the forward.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from zigzag.models.decoder import Decoder
from zigzag.reference.errors import ModelError
from zigzag.running.learned_sinks import attention_with_sinks
from zigzag.running.model_layers import ModelLayers, decoder_of, layers_of

NAME = "zigzag"


class States(NamedTuple):
    """What one attention layer is given.

    query: [B, H, Tq, D]; key, value: [B, G, Tk, D], of the layer's cache
    mask: of transformers, [B, 1, Tq, Tk] bool or None
    scale: factor on the scores; None for D^-0.5
    sinks: [H] learned scores that take part in each softmax and have no value (gpt-oss); None without
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scale: float | None
    sinks: Tensor | None = None


Attend = Callable[[nn.Module, States], Tensor]  # -> [B, H, Tq, Dv]
Prepare = Callable[[Any, tuple[Any, ...], dict[str, Any]], None]

# What else models hand to their attention: told, or of no weight where masks and caches are ours.
HARMLESS = frozenset(
    "position_ids use_cache output_hidden_states output_router_logits return_dict num_items_in_batch "
    "cache_position logits_to_keep token_type_ids".split()
)
# What transformers' packed batches bring: rows that hold several texts.
PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")

_attending: ContextVar[Attend | None] = ContextVar("attending", default=None)


def _attention_function(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    s_aux: Tensor | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    attend: Attend | None = kwargs.pop(NAME, None) or _attending.get()
    states = States(query, key, value, attention_mask, scaling, s_aux)
    if not hasattr(module, "_zigzag_window"):  # of another part of the model, or "zigzag" was set without a plan
        if s_aux is not None:
            output = attention_with_sinks(query, key, value, attention_mask, scaling, s_aux)
            return output.transpose(1, 2).contiguous(), None
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, is_causal=is_causal, **kwargs
        )
    if attend is None:
        raise ModelError(f"{type(module).__name__} was called by itself: call the model, not a part of it")
    unknown = [n for n, given in kwargs.items() if given is not None and given is not False and n not in HARMLESS]
    if sliding_window is not None and sliding_window != module._zigzag_window:
        unknown.append(f"sliding_window={sliding_window} (its layer_types say another)")
    if unknown or dropout or is_causal is False:
        what = ", ".join((*unknown, *["dropout"] * bool(dropout), *["is_causal=False"] * (is_causal is False)))
        raise ModelError(f"{type(module).__name__} asks its attention for {what}, which cannot be had under zigzag")
    return attend(module, states).transpose(1, 2).contiguous(), None


def full_attention(module: nn.Module, states: States) -> Tensor:
    """Causal attention under the mask that transformers made for the layer: [B, H, Tq, Dv]."""
    query, key, value, mask, scale, sinks = states
    if sinks is not None:
        return attention_with_sinks(query, key, value, mask, scale, sinks)
    output, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=scale)
    return output.transpose(1, 2)


def layer_index(module: nn.Module) -> int:
    """Which layer an attention module of transformers belongs to."""
    index: Any = module.layer_idx
    return int(index)


AttentionInterface.register(NAME, _attention_function)
AttentionMaskInterface.register(NAME, sdpa_mask)

ATTACHMENT = "_zigzag_attachment"  # where the decoder holds the plan that `zigzag.attach` gave it
_INTERCEPTION = "_zigzag_interception"  # where the decoder of a model holds what has its attention
_lock = Lock()  # one thread at a time puts something there, or takes it away


class Interception:
    """The model's attention is ours while this is installed; `remove` restores what was there.

    It stands on the decoder, which all handles of a model share: wrapped by PEFT, inside a pipeline, merged.
    `prepare(decoder, args, kwargs)` runs before each forward and puts an Attend in kwargs["zigzag"].

    what: what the model is doing meanwhile, for errors

    Raises ModelError if the model cannot run plans, or somebody has its attention already.
    """

    def __init__(self, model: Decoder, prepare: Prepare, what: str) -> None:
        layers = layers_of(model)
        decoder: Any = model.get_decoder()
        with _lock:
            check_free(model)
            self._install(decoder, layers, prepare, what)
        missing = set(layers.full) - {layer_index(module) for module in self.modules}
        if decoder.config._attn_implementation != NAME or missing:
            self.remove()
            raise ModelError(
                f"{type(model).__name__} does not go through transformers' attention interface, so its attention "
                f"cannot be replaced"
            )

    def _install(self, decoder: Any, layers: ModelLayers, prepare: Prepare, what: str) -> None:
        self.decoder, self.prepare, self.what = decoder, prepare, what
        self.previous = decoder.config._attn_implementation
        self._lent: tuple[Prepare, str] | None = None
        self.modules: list[Any] = [m for m in decoder.modules() if isinstance(getattr(m, "layer_idx", None), int)]
        decoder.set_attn_implementation(NAME)
        for module in self.modules:
            own = layers.windows[layer_index(module)]
            module._zigzag_window = None if own is None else own.size
        self.hooks = [
            decoder.register_forward_pre_hook(self._before, with_kwargs=True),
            decoder.register_forward_hook(self._after, always_call=True),
        ]
        setattr(decoder, _INTERCEPTION, self)

    def _before(
        self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if len(args) > 1:
            raise ModelError("with zigzag, give a model's inputs other than input_ids by keyword")
        if decoder.config._attn_implementation != NAME:
            raise ModelError(
                f"the attention of this model was set to {decoder.config._attn_implementation!r} while it {self.what}: "
                f"call zigzag.detach(model), set it, and attach the plan again"
            )
        self._check_asked(decoder, kwargs)
        kwargs = dict(kwargs)
        (self._lent[0] if self._lent else self.prepare)(decoder, args, kwargs)
        _attending.set(kwargs[NAME])
        return args, kwargs

    def _check_asked(self, decoder: Any, kwargs: dict[str, Any]) -> None:
        """ModelError, before any layer runs, for what its attention would refuse or ignore."""
        if kwargs.get("output_attentions"):
            raise ModelError("with zigzag there are no attention weights to give: leave out output_attentions")
        packed = [name for name in PACKED if kwargs.get(name) is not None]
        if packed:
            raise ModelError(f"packed rows ({', '.join(packed)}) cannot be kept apart here: give each text its own row")
        dropping = [m for m in self.modules if getattr(m, "attention_dropout", 0)] if decoder.training else []
        if dropping:
            raise ModelError(
                f"attention dropout ({dropping[0].attention_dropout}) cannot be had under zigzag: set "
                f"attention_dropout to 0 in the config and in each attention module, or call model.eval()"
            )

    def _after(self, *_: Any) -> None:
        _attending.set(None)

    @contextmanager
    def lent(self, prepare: Prepare, what: str) -> Iterator[None]:
        """Within the block forwards are prepared by somebody else; ModelError if they are already."""
        with _lock:
            self._check_not_lent()
            self._lent = (prepare, what)
        try:
            yield
        finally:
            self._lent = None

    def _check_not_lent(self) -> None:
        if self._lent is not None:
            raise _busy(self._lent[1])

    def remove(self) -> None:
        """Give the attention back; what others have set meanwhile stays."""
        with _lock:
            self._check_not_lent()
            if getattr(self.decoder, _INTERCEPTION, None) is not self:  # another thread was first
                return
            delattr(self.decoder, _INTERCEPTION)
            for hook in self.hooks:
                hook.remove()
            for module in self.modules:
                del module._zigzag_window
            if self.decoder.config._attn_implementation == NAME:
                self.decoder.set_attn_implementation(self.previous)


def interception_of(model: Decoder) -> Interception | None:
    """What has the attention of the model, by whichever handle; None if nothing has."""
    return getattr(decoder_of(model), _INTERCEPTION, None)


def attachment_of(model: Decoder) -> Any:
    """What `zigzag.attach` has put on the model, with its `plan` and `spare`; None without a plan."""
    return getattr(decoder_of(model), ATTACHMENT, None)


def is_checkpointing(decoder: Any) -> bool:
    """Whether layers are computed again for their gradients: transformers then hands them no cache."""
    return decoder.training and any(getattr(module, "gradient_checkpointing", False) for module in decoder.modules())


def check_keeps_a_cache(decoder: Any) -> None:
    """ModelError if the layers would not get the cache that they are given."""
    if is_checkpointing(decoder):
        raise ModelError("gradient checkpointing keeps no cache: call model.eval(), or pass no past_key_values")


def check_free(model: Decoder) -> None:
    """ModelError if something has the model's attention."""
    if (found := interception_of(model)) is not None:
        raise _busy(found.what)


def _busy(what: str) -> ModelError:
    return ModelError(
        f"the model {what}: wait until that has ended (threads that share a model need a lock of yours, or rows in one "
        f"batch), or load it a second time"
    )


@contextmanager
def attending(attend: Attend) -> Iterator[None]:
    """Within the block layers that are called by themselves, not by their decoder, attend so."""
    token = _attending.set(attend)
    try:
        yield
    finally:
        _attending.reset(token)


@contextmanager
def intercepted(model: Decoder, attend: Attend) -> Iterator[None]:
    """Within the block every layer with full attention calls `attend`, the others as ever; forwards keep no cache."""
    if attachment_of(model) is not None:
        raise ModelError("the model already runs a plan: call zigzag.detach(model) first")
    full = frozenset(layers_of(model).full)

    def attend_full(module: nn.Module, states: States) -> Tensor:
        return attend(module, states) if layer_index(module) in full else full_attention(module, states)

    def prepare(decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if kwargs.get("past_key_values") is not None:
            raise ModelError("scoring and head masks work on whole prompts: pass no past_key_values")
        kwargs["use_cache"] = False
        kwargs[NAME] = attend_full

    interception = Interception(model, prepare, "is being scored, or its heads are masked")
    try:
        yield
    finally:
        interception.remove()
