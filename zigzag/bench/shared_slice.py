"""A slice of GLM-4.5-Air over several processes, with the weights that one process draws, and no file between them.

transformers' own plan says what is split. Every process draws each weight whole, by its name, and keeps its share.
"""

from typing import Any
from zlib import crc32

import torch
from torch import Tensor
from transformers import Glm4MoeConfig, Glm4MoeForCausalLM
from transformers.initialization import no_init_weights

from zigzag.bench.step import LAYERS, Sizes
from zigzag.models.decoder import CausalLM
from zigzag.models.placement import check_divides
from zigzag.running.shards import is_shared

TENSORS, EXPERTS = "tensor parallel", "expert parallel"


def parallel_config(kind: str, size: int) -> Any:
    """transformers' configuration: everything split over `size` processes, or the experts as wholes."""
    from transformers.distributed.configuration_utils import DistributedConfig

    if kind == TENSORS:
        return DistributedConfig(tp_size=size)
    names = DistributedConfig.__dataclass_fields__
    experts: dict[str, Any] = {"ep_size": size} if "ep_size" in names else {"enable_expert_parallel": True}
    return DistributedConfig(tp_size=size, **experts)


def shared_slice(
    device: torch.device,
    sizes: Sizes,
    *,
    layers: int = LAYERS,
    kind: str | None = None,
    size: int = 1,
    dtype: torch.dtype | None = None,
) -> CausalLM:
    """The first layer dense, the others with experts; random, in bfloat16 on a GPU unless another dtype is given.

    kind: how it is split over `size` processes, each of which calls this; None: whole, in this process
    """
    if dtype is None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = _config(sizes, layers)
    check_divides(config, size, size if kind == EXPERTS else 1)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with no_init_weights(), torch.device("meta"):
            model: Any = Glm4MoeForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    if kind is not None:
        if kind == EXPERTS:
            _split_the_rest(model)
        asked, _, mesh = Glm4MoeForCausalLM.prepare_distribute_model(parallel_config(kind, size))
        model = Glm4MoeForCausalLM.maybe_distribute_model(model, asked, mesh)
    _draw(model, device)
    made: CausalLM = model.eval()
    return made


def _split_the_rest(model: Any) -> None:
    """Have attention and dense layers split too where the experts are wholes, as transformers 5.21 and later do."""
    rest = {name: style for name, style in model._tp_plan.items() if ".mlp.experts" not in name}
    if "ep_router" in model._ep_plan.values():
        model._ep_plan = rest | model._ep_plan


def _config(sizes: Sizes, layers: int) -> Glm4MoeConfig:
    rope = {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5}
    return Glm4MoeConfig(
        **sizes,
        num_hidden_layers=layers,
        first_k_dense_replace=1,
        attention_bias=True,
        use_qk_norm=False,
        rope_parameters=rope,
        eos_token_id=None,
        pad_token_id=None,
    )


def _draw(model: Any, device: torch.device) -> None:
    """Weights and buffers on the device, in the place of what is on none."""
    for module_name, module in model.named_modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            whole = _drawn(f"{module_name}.{name}", weight, device)
            held = torch.nn.Parameter(_share(weight, whole) if is_shared(weight) else whole, requires_grad=False)
            module._parameters[name] = held
        if isinstance(bias := getattr(module, "e_score_correction_bias", None), Tensor):
            module.e_score_correction_bias = torch.zeros(bias.shape, dtype=torch.float32, device=device)
    decoder = model.model
    with device:
        decoder.rotary_emb = type(decoder.rotary_emb)(config=model.config)


def _drawn(name: str, weight: Tensor, device: torch.device) -> Tensor:
    draw = torch.Generator(device).manual_seed(crc32(name.encode()))
    scale = 0.02 if weight.dim() > 1 else 0.0
    made = torch.empty(weight.shape, dtype=weight.dtype, device=device)
    return made.normal_(1.0 if "norm" in name else 0.0, scale, generator=draw)


def _share(placed: Any, whole: Tensor) -> Tensor:
    """This process's share of a weight, as the DTensor `placed` says."""
    from torch.distributed.tensor import DTensor

    mesh, local = placed.device_mesh, whole
    for placement in placed.placements:
        if not placement.is_replicate():
            local = _run(local, placement, mesh.get_local_rank(), mesh.size())
    shared: Tensor = DTensor.from_local(
        local.clone(), mesh, placed.placements, run_check=False, shape=placed.shape, stride=placed.stride()
    )
    return shared


def _run(whole: Tensor, placement: Any, rank: int, size: int) -> Tensor:
    """The rank's run along the placement's axis; of one that interleaves several matrices its run of each."""
    matrices = whole.chunk(getattr(placement, "split_factor", 1), dim=placement.dim)
    return torch.cat([matrix.chunk(size, dim=placement.dim)[rank] for matrix in matrices], dim=placement.dim)
