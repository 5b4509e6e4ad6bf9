"""A trained head as a folder: config.json, which says what it is and for which model, and model.safetensors."""

import logging
import os
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zigzag.files.json_files import read_json, write_json
from zigzag.models.draft_heads.kinds import KINDS, make_head
from zigzag.reference.errors import ModelError

FORMAT, VERSION = "zigzag-draft-head", 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"
SHARED = tuple(f"{where}{part}." for where in ("", "model.") for part in ("embed_tokens", "lm_head", "rotary_emb"))
PROBES, CLOSE = 64, 0.02
log = logging.getLogger("zigzag")
SHIPPED = Path(__file__).parent / "shipped"


def cached_heads() -> Path:
    """Where `zigzag train-drafter` leaves heads by itself, as MODEL/KIND: below $XDG_CACHE_HOME, or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "zigzag" / "heads"


def model_name(model: Any) -> str:
    """The last part of the name that the model was loaded by, or its class."""
    return Path(getattr(model.config, "_name_or_path", "") or type(model).__name__).name


def own_weights(head: nn.Module) -> dict[str, Tensor]:
    """A head's weights without those that it shares with the model."""
    return {name: value for name, value in head.state_dict().items() if not name.startswith(SHARED)}


def probes(model: Any) -> list[float]:
    """Some numbers of a model, by which it is known again in any precision: of its last norm, and of its head."""
    *_, norm = model.get_decoder().parameters()
    parts = [part.detach().flatten() for part in (norm, model.get_output_embeddings().weight)]
    each = [part[places(len(part)).to(part.device)] for part in parts]
    found: list[float] = torch.cat([part.float().cpu() for part in each]).tolist()
    return found


def places(count: int) -> Tensor:
    """Where in so many numbers it is looked, from the first to the last; in whole numbers, since floats would round."""
    return torch.arange(PROBES // 2) * (count - 1) // (PROBES // 2 - 1)


def save_head(head: nn.Module, kind: str, sizes: dict[str, int], model: Any, folder: Path) -> None:
    """Write a head of this model in bfloat16; a head that lies in the folder is replaced once all is there."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = model.config.get_text_config(decoder=True)
    told = {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "sizes": sizes,
        "model": {
            "name": model_name(model),
            "hidden_size": config.hidden_size,
            "vocab_size": config.vocab_size,
            "num_hidden_layers": config.num_hidden_layers,
            "probes": probes(model),
        },
    }
    weights = {name: value.to("cpu", torch.bfloat16).contiguous() for name, value in own_weights(head).items()}
    save_file(weights, str(folder / f".{WEIGHTS}.part"))
    os.replace(folder / f".{WEIGHTS}.part", folder / WEIGHTS)
    write_json(folder / CONFIG, told)


def load_head(source: str | Path, model: Any) -> nn.Module:
    """A trained head for `model`, with its dtype and on its device.

    source: a kind, as "eagle": of those that ship with zigzag or that `zigzag train-drafter` has made; or a folder

    Raises ModelError if there is none, if it is damaged, or if it was trained for another model.
    """
    folder = _found(str(source), model)
    told = _read(folder)
    if other := _other_model(told["model"], model):
        raise ModelError(
            f"load_head: {folder} was trained for {told['model'].get('name')}, which has {other}; train one for this "
            f"model: zigzag train-drafter {told['kind']} --model MODEL"
        )
    head = make_head(told["kind"], model, **told["sizes"])
    _load(head, folder)
    return head.eval()


def _found(source: str, model: Any) -> Path:
    """The folder that is meant; of a kind the first that was trained for this model."""
    if source not in KINDS:
        if not Path(source).is_dir():
            near = get_close_matches(source, KINDS, 1, 0.6)
            meant = f"did you mean {near[0]}?" if near else f"kinds are {', '.join(KINDS)}"
            raise ModelError(f"load_head: there is no folder {source}; {meant}")
        return Path(source)
    for heads in (SHIPPED, cached_heads()):
        for folder in sorted(heads.glob(f"*/{source}")):
            if (folder / CONFIG).is_file() and _is_for(folder, model):
                return folder
    raise ModelError(
        f"load_head: no {source} head for {model_name(model)} ships with zigzag, nor has one been trained here; make "
        f"it: zigzag train-drafter {source} --model MODEL"
    )


def _is_for(folder: Path, model: Any) -> bool:
    """Whether a head that was found was trained for this model; a damaged one is passed over."""
    try:
        return not _other_model(_read(folder)["model"], model)
    except ModelError as error:
        log.warning("%s", error)
        return False


def _read(folder: Path) -> dict[str, Any]:
    told = read_json(folder / CONFIG, ModelError, FORMAT)
    if (
        told.get("kind") not in KINDS
        or not isinstance(told.get("sizes"), dict)
        or "probes" not in told.get("model", ())
    ):
        raise ModelError(f"load_head: {folder / CONFIG} is damaged; give the folder that zigzag train-drafter wrote")
    return told


def _other_model(meant: dict[str, Any], model: Any) -> str:
    """What tells the model that a head was trained for from this one; empty if nothing does."""
    config = model.config.get_text_config(decoder=True)
    for name in ("hidden_size", "vocab_size", "num_hidden_layers"):
        if meant.get(name) != getattr(config, name):
            return f"{name} {meant.get(name)}, this model's is {getattr(config, name)}"
    own, given = torch.tensor(probes(model)), torch.tensor(meant["probes"])
    if own.shape != given.shape or not bool(((own - given).abs() <= CLOSE * given.abs() + 1e-6).all()):
        return "other weights in its norm and head than this model"
    return ""


def _load(head: nn.Module, folder: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        given = load_file(str(folder / WEIGHTS))
    except (OSError, SafetensorError) as error:
        raise ModelError(f"load_head: {folder / WEIGHTS} is missing or damaged ({error}); train it again") from error
    own = own_weights(head)
    wrong = sorted(own.keys() ^ given.keys()) or [n for n in own if own[n].shape != given[n].shape]
    if wrong or not all(bool(value.isfinite().all()) for value in given.values()):
        raise ModelError(
            f"load_head: the weights of {folder} are missing, left over, of another shape or not finite"
            f"{f', first {wrong[0]}' if wrong else ''}; train it again"
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(given[name])
