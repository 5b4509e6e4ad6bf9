"""What learns: an adapter, or weights of the model itself, and how the model is as it was, and as it is by now.

Weights of the model learn in copies, which take their places only within `now()`: nothing is written where the model's
own numbers lie, so that the model cannot be left as anything else than it was.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from zigzag.files.folders import replaced
from zigzag.models.folder import save_folder
from zigzag.plans.layers import LayerPlan
from zigzag.reference.errors import ArgumentError, ModelError
from zigzag.running.interception import layer_index
from zigzag.running.model_layers import layers_of
from zigzag.training.recovery.config import RecoveryTraining

ADAPTER, MERGED = "adapter", "model"  # folders below a run's


class Learner(Protocol):
    """weights: {name: what the optimizer moves}, in single precision at least"""

    weights: dict[str, Tensor]

    @contextmanager
    def now(self) -> Iterator[None]:
        """Within the block the model is as it has learned; outside of it, as it was."""

    def gradients(self) -> dict[str, Tensor]:
        """Of the last backward pass, taken away."""

    def take(self) -> None:
        """What the optimizer has moved is what the model is within `now()`."""

    def logits_before(self, states: Tensor) -> Tensor:
        """The head as it was, also within `now()`: [..., hidden] to [..., V]."""

    def save(self, tokenizer: Any, out: Path) -> Path:
        """Write what was learned, whole or not at all; the folder."""

    def remove(self) -> None:
        """Leave the model as it was found."""


def make_learner(config: RecoveryTraining, model: Any, plan: LayerPlan) -> Learner:
    """Raises ModelError for a model that has not what is to learn, ArgumentError without PEFT for an adapter."""
    if config.learn == "lora":
        return Adapter(config, model, plan)
    return OwnWeights(model, weights_that_learn(config, model, plan))


def learning_layers(config: RecoveryTraining, model: Any, plan: LayerPlan) -> list[int]:
    """Indices, among all layers of the model, of those whose projections learn."""
    full = layers_of(model).full
    return [index for own, index in enumerate(full) if config.layers == "all" or plan.is_streaming(own)]


def projections(model: Any, layers: list[int]) -> dict[str, nn.Module]:
    """{name: linear layer} of the attention of these layers; ModelError if one has none."""
    found: dict[str, nn.Module] = {}
    seen = set()
    for name, module in model.named_modules():
        if isinstance(getattr(module, "layer_idx", None), int) and layer_index(module) in layers:
            inner = {f"{name}.{part}": each for part, each in module.named_modules() if isinstance(each, nn.Linear)}
            found |= inner
            seen |= {layer_index(module)} if inner else set()
    if missing := sorted(set(layers) - seen):
        raise ModelError(
            f"recover: the attention of layer {missing[0]} of {type(model).__name__} has no linear layers that could "
            f"learn; take learn='all'"
        )
    return found


def weights_that_learn(config: RecoveryTraining, model: Any, plan: LayerPlan) -> set[str]:
    """Names of parameters, for the ways that move the model's own."""
    every = dict(model.named_parameters())
    if config.learn == "all":
        return set(every)
    norms = [name for name, module in model.named_modules() if "norm" in type(module).__name__.lower()]
    owners = [*norms, *projections(model, learning_layers(config, model, plan))]
    return {name for name in every if name.rpartition(".")[0] in owners}


class OwnWeights:
    """The model's own weights learn: `weights` are copies in single precision, or double where the model is."""

    def __init__(self, model: Any, names: set[str]) -> None:
        self.model = model
        self._parameters = {name: weight for name, weight in model.named_parameters() if name in names}
        if fixed := [name for name, weight in self._parameters.items() if not weight.is_floating_point()]:
            raise ModelError(f"recover: {fixed[0]} is quantized and cannot learn; take learn='lora'")
        self._flags = {weight: weight.requires_grad for weight in model.parameters()}
        self._before = {name: weight.data for name, weight in self._parameters.items()}
        self._now = {name: weight.data.clone() for name, weight in self._parameters.items()}
        self.weights = {name: self._wide(weight) for name, weight in self._now.items()}
        head = model.get_output_embeddings()
        by_id = {id(weight): name for name, weight in self._parameters.items()}
        own = {part: by_id[id(weight)] for part, weight in head.named_parameters() if id(weight) in by_id}
        self._head, self._head_before = head, {part: self._before[name] for part, name in own.items()}
        for weight in model.parameters():
            weight.requires_grad_(any(weight is each for each in self._parameters.values()))

    @staticmethod
    def _wide(weight: Tensor) -> Tensor:
        return weight if weight.dtype in (torch.float32, torch.float64) else weight.float()

    @contextmanager
    def now(self) -> Iterator[None]:
        for name, weight in self._parameters.items():
            weight.data = self._now[name]
        try:
            yield
        finally:
            for name, weight in self._parameters.items():
                weight.data = self._before[name]

    def gradients(self) -> dict[str, Tensor]:
        found = {
            name: weight.grad.to(self.weights[name].dtype)
            for name, weight in self._parameters.items()
            if weight.grad is not None
        }
        for weight in self._parameters.values():
            weight.grad = None
        return found

    def take(self) -> None:
        for name, weight in self.weights.items():
            if self._now[name] is not weight:
                self._now[name].copy_(weight)

    def logits_before(self, states: Tensor) -> Tensor:
        logits: Tensor = functional_call(self._head, self._head_before, (states,))
        return logits

    def save(self, tokenizer: Any, out: Path) -> Path:
        config = self.model.config
        found = {name: getattr(config, name) for name in ("architectures", "dtype")}
        try:
            with replaced(out / MERGED) as new, self.now():
                save_folder(self.model, tokenizer, new)
        finally:
            for name, value in found.items():  # transformers writes its own there
                setattr(config, name, value)
        return out / MERGED

    def remove(self) -> None:
        for weight, flag in self._flags.items():
            weight.requires_grad_(flag)


class Adapter:
    """LoRA on the projections (arXiv 2106.09685), through PEFT; `weights` are the adapter's own."""

    def __init__(self, config: RecoveryTraining, model: Any, plan: LayerPlan) -> None:
        try:
            import peft
        except ImportError as error:
            raise ArgumentError("recover: learn='lora' needs PEFT: pip install 'zigzag-attention[recover]'") from error
        if hasattr(model, "peft_config"):
            raise ModelError("recover: the model has adapters already: merge or unload them before")
        layers = learning_layers(config, model, plan)
        wanted = projections(model, layers)
        self.model = model
        self._flags = {weight: weight.requires_grad for weight in model.parameters()}
        options = peft.LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            target_modules=sorted({name.rpartition(".")[2] for name in wanted}),
            layers_to_transform=layers,
            task_type="CAUSAL_LM",
        )
        self._adapted: Any = peft.get_peft_model(model, options)
        self._adapted.eval()
        reached = {name for name, module in model.named_modules() if hasattr(module, "lora_A")}
        if reached != set(wanted):
            self.remove()
            raise ModelError(
                f"recover: PEFT would adapt other layers than the projections of attention, first "
                f"{min(reached ^ set(wanted))}; take learn='norms+projections'"
            )
        self.weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._switch(on=False)

    @contextmanager
    def now(self) -> Iterator[None]:
        self._switch(on=True)
        try:
            yield
        finally:
            self._switch(on=False)

    def _switch(self, *, on: bool) -> None:
        layers = self._adapted.base_model
        (layers.enable_adapter_layers if on else layers.disable_adapter_layers)()

    def gradients(self) -> dict[str, Tensor]:
        found = {name: weight.grad for name, weight in self.weights.items() if weight.grad is not None}
        for weight in self.weights.values():
            weight.grad = None
        return found

    def take(self) -> None:
        """They are the adapter's own."""

    def logits_before(self, states: Tensor) -> Tensor:
        logits: Tensor = self.model.get_output_embeddings()(states)
        return logits

    def save(self, tokenizer: Any, out: Path) -> Path:
        with replaced(out / ADAPTER) as new, self.now():
            self._adapted.save_pretrained(new, save_embedding_layers=False)
            (new / "README.md").unlink(missing_ok=True)  # PEFT's form to be filled in; the run has a card of its own
        return out / ADAPTER

    def remove(self) -> None:
        self._adapted.unload()
        vars(self.model).pop("peft_config", None)
        for weight, flag in self._flags.items():
            weight.requires_grad_(flag)
