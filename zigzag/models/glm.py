"""GLM-4.5 with its multi-token prediction layer, from a checkpoint on disk.

transformers loads no MTP layer with a model, and its own drafting reads that layer from disk again at every
`generate`. Here it is loaded once.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from zigzag.models import tiny_glm
from zigzag.models.checkpoint import Checkpoint, open_checkpoint
from zigzag.models.decoder import CausalLM, Decoder
from zigzag.models.placement import floating_dtype, usable_device
from zigzag.reference.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import Glm4MoeForCausalLM

    from zigzag.models.mtp_head import MtpHead

BIAS = "mlp.gate.e_score_correction_bias"


def load(
    path: str | Path, *, dtype: "str | torch.dtype" = "bfloat16", **options: Any
) -> tuple[CausalLM, "MtpHead | None"]:
    """(transformers' model, its MTP layer or None where the checkpoint has none), in evaluation mode.

    The layer shares the model's embedding and head; copies of them in the checkpoint are not read.

    The biases that choose the experts stay float32, whatever `dtype` is: in bfloat16 biases that lie close together
    become equal, and tokens go to other experts (seen with GLM-5.2, sglang#37133). ``model.to(dtype)`` afterwards would
    do that too.

    path: a folder of an official checkpoint, or of one that transformers or `save_checkpoint` wrote; "tiny-glm" is the
        small model that ships with zigzag (a folder of that name: "./tiny-glm")
    dtype: of all else, by name or a torch dtype; options: for transformers' `from_pretrained`, as device_map

    Raises ModelError if the checkpoint is not whole (`open_checkpoint`) or has several MTP layers, ArgumentError for a
    dtype that models do not compute in.
    """
    kind = floating_dtype("glm.load", dtype)
    path = tiny_glm.folder() if str(path) == tiny_glm.NAME else Path(path)
    if not path.is_dir():
        raise ModelError(f"glm.load: a checkpoint's folder is needed, or {tiny_glm.NAME}; there is no folder {path}")
    checkpoint = open_checkpoint(path)
    if checkpoint.has_mtp and checkpoint.config.num_nextn_predict_layers > 1:
        raise ModelError(
            f"glm.load: one MTP layer can be used, {path} has {checkpoint.config.num_nextn_predict_layers}"
        )
    model = main_model(path, checkpoint, dtype=kind, **options)
    return model, mtp_layer(checkpoint, model) if checkpoint.has_mtp else None


def load_both(
    path: str | Path, *, dtype: "str | torch.dtype", device: "str | torch.device"
) -> tuple[CausalLM, "MtpHead"]:
    """As `load`, on one device; ModelError too where the checkpoint has no MTP layer."""
    place = usable_device("glm.load_both: device", device)
    model, mtp = load(path, dtype=dtype)
    if mtp is None:
        raise ModelError(f"{path} must hold an MTP layer and holds none; give the checkpoint that was trained")
    parts: tuple[Decoder, Decoder] = model, mtp
    for part in parts:
        part.to(place)
    return model, mtp


def main_model(path: Path, checkpoint: Checkpoint, *, dtype: "torch.dtype", **options: Any) -> "Glm4MoeForCausalLM":
    """transformers' model of the opened checkpoint in the folder, as `load` gives it, and nothing of its MTP layer."""
    from transformers import Glm4MoeForCausalLM

    model: Glm4MoeForCausalLM = _without_mtp(checkpoint).from_pretrained(path, dtype=dtype, **options)
    model.train(False)
    model.__class__ = Glm4MoeForCausalLM
    # A name for plans and records, not a path of this machine.
    model.config._name_or_path = tiny_glm.NAME if path == Path(tiny_glm.__file__).parent else path.resolve().name
    _restore_biases(model, checkpoint)
    return model


def mtp_layer(checkpoint: Checkpoint, model: CausalLM) -> "MtpHead":
    """The MTP layer of a checkpoint, on a model that was loaded from it, whose embedding and head it shares."""
    from zigzag.models.mtp_head import DUPLICATES, MtpHead

    prefix = f"model.layers.{checkpoint.config.num_hidden_layers}."
    own = {name.removeprefix(prefix): name for name in checkpoint if name.startswith(prefix)}
    return MtpHead(model).load({n: checkpoint.torch(name) for n, name in own.items() if n not in DUPLICATES})


def _without_mtp(checkpoint: Checkpoint) -> "type[Glm4MoeForCausalLM]":
    """transformers' class, told which layer it shall leave out: by itself it knows those of the published sizes."""
    from transformers import Glm4MoeForCausalLM

    left_out = [rf"model\.layers\.{checkpoint.config.num_hidden_layers}\..*"]
    return type(Glm4MoeForCausalLM.__name__, (Glm4MoeForCausalLM,), {"_keys_to_ignore_on_load_unexpected": left_out})


def _restore_biases(model: "Glm4MoeForCausalLM", checkpoint: Checkpoint) -> None:
    """The checkpoint's routing biases in float32, where loading has made them anything else."""
    import torch

    for layer, block in enumerate(model.model.layers):
        if not checkpoint.config.is_dense(layer) and block.mlp.gate.e_score_correction_bias.dtype != torch.float32:
            bias = checkpoint.torch(f"model.layers.{layer}.{BIAS}").float()
            block.mlp.gate.e_score_correction_bias = bias.to(block.mlp.gate.weight.device)
