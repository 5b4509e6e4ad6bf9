"""What zigzag needs of a model: the protocol that transformers' decoders, and `MtpHead`, satisfy."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import nn


class Decoder(Protocol):
    """A transformers decoder with grouped-query attention, as `decoder_config` checks it when a model comes in.

    config: transformers' configuration; what it holds depends on the architecture
    training: whether it is in training mode
    """

    config: Any
    training: bool

    @property
    def dtype(self) -> "torch.dtype": ...

    @property
    def device(self) -> "torch.device":
        """Where its inputs go: of a model spread over several devices, the first."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """One forward; of the output, `logits` [B, T, V] and `past_key_values` are used."""

    def get_decoder(self) -> "nn.Module":
        """The layers without the head; its output holds `last_hidden_state` [B, T, hidden]."""

    def get_input_embeddings(self) -> "nn.Module": ...

    def set_attn_implementation(self, attn_implementation: str) -> None: ...

    def modules(self) -> "Iterator[nn.Module]": ...

    def parameters(self) -> "Iterator[nn.Parameter]": ...

    def named_parameters(self) -> "Iterator[tuple[str, nn.Parameter]]": ...

    def to(self, *args: Any, **kwargs: Any) -> Any: ...

    def train(self, mode: bool = True) -> Any: ...

    def eval(self) -> Any: ...


class CausalLM(Decoder, Protocol):
    """A decoder with transformers' own loop, as `load_model` and `zigzag.load` give it."""

    generation_config: Any

    def get_output_embeddings(self) -> "nn.Module":
        """The head: hidden states in, logits out."""

    def generate(self, *args: Any, **kwargs: Any) -> Any: ...

    def generate_batch(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' continuous batching."""
