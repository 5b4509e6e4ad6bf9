"""The multi-token-prediction layer of GLM-4.5 as a small model of one layer, beside the transformers model.

transformers leaves these weights out when it loads a checkpoint. The arithmetic is `StateHead`'s (report
arXiv 2508.06471, section 2.1; vLLM, SGLang and transformers agree on it).
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from zigzag.models.state_head import StateHead
from zigzag.reference.errors import ModelError


class MtpHead(StateHead):
    """One MTP layer; embedding, head and rotary embedding are the main model's own.

    main: a `Glm4MoeForCausalLM`

    Raises ModelError for a model of another architecture.
    """

    def __init__(self, main: Any) -> None:
        if not hasattr(main.config, "first_k_dense_replace"):
            raise ModelError(f"MtpHead: a GLM-4.5 model is needed, got {type(main).__name__}")
        config = deepcopy(main.config)
        config.num_hidden_layers, config.first_k_dense_replace = 1, 0  # its block always has experts
        super().__init__(main, config)

    def load(self, tensors: Mapping[str, Tensor]) -> "MtpHead":
        """Take the weights of a checkpoint, under their names without `model.layers.N.`.

        The copies of embedding and head that some checkpoints hold are left aside. Returns itself.

        Raises ModelError listing what is missing, left over or of another shape.
        """
        given = {_own_name(name): tensor for name, tensor in tensors.items() if name not in DUPLICATES}
        given = _fused(given)
        wanted = self.own_weights()
        wrong = [f"{name} is missing" for name in wanted.keys() - given.keys()]
        wrong += [f"{name} is not a weight of the layer" for name in given.keys() - wanted.keys()]
        wrong += [
            f"{name} must be {list(wanted[name].shape)}, is {list(given[name].shape)}"
            for name in wanted.keys() & given.keys()
            if wanted[name].shape != given[name].shape
        ]
        if wrong:
            raise ModelError(f"MtpHead: {len(wrong)} weights do not fit: {'; '.join(sorted(wrong)[:5])}")
        with torch.no_grad():
            for name, value in wanted.items():
                value.copy_(given[name])
        return self


DUPLICATES = ("embed_tokens.weight", "shared_head.head.weight")
_RENAMED = {"shared_head.norm.weight": "norm.weight"}
_OUTER = ("enorm.", "hnorm.", "eh_proj.", "norm.")


def _own_name(name: str) -> str:
    name = _RENAMED.get(name, name)
    return name if name.startswith(_OUTER) else f"block.{name}"


def _fused(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Per-expert matrices stacked as transformers keeps them: gate_up_proj [E, 2 * width, hidden] and down_proj."""
    prefix = "block.mlp.experts."
    parts = {name: t for name, t in tensors.items() if name.startswith(prefix) and name[len(prefix)].isdigit()}
    if not parts:
        return tensors
    rest = {name: t for name, t in tensors.items() if name not in parts}
    count = 1 + max(int(name[len(prefix) :].partition(".")[0]) for name in parts)
    try:
        gates, ups, downs = (
            [parts[f"{prefix}{i}.{kind}_proj.weight"] for i in range(count)] for kind in ("gate", "up", "down")
        )
    except KeyError as error:
        raise ModelError(f"MtpHead: the expert weight {error} is missing") from error
    rest[f"{prefix}gate_up_proj"] = torch.stack([torch.cat(pair) for pair in zip(gates, ups, strict=True)])
    rest[f"{prefix}down_proj"] = torch.stack(downs)
    return rest
