"""GLM-4.5 checkpoints: opened without reading them, checked whole, written back with the same bytes.

A folder holds config.json, shards of safetensors and `model.safetensors.index.json` (or one `model.safetensors`).
Only safetensors is read: unpickling a file runs the code in it.
"""

import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from numpy.typing import NDArray

from zigzag.files import safetensors_files as files
from zigzag.files.json_files import read_json
from zigzag.files.safetensors_files import Entry, Stored
from zigzag.models.checkpoint_names import Shape, Spec, check_tensors, fused_parts, mtp_layers, official_places
from zigzag.reference.errors import ModelError
from zigzag.reference.glm import GlmConfig

if TYPE_CHECKING:
    from torch import Tensor

INDEX, SINGLE, CONFIG = "model.safetensors.index.json", "model.safetensors", "config.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
SHARD_BYTES = 5_000_000_000
Output = tuple[list[str], Shape]  # the official tensors that a tensor to be written joins, and its shape if it does


class _Source(ABC):
    """Tensors by their official names, whether experts lie in it one by one or fused."""

    def __init__(self, config: GlmConfig, names: Iterable[str]) -> None:
        self.config = config
        self._places = official_places(config, names)

    @abstractmethod
    def _whole_spec(self, name: str) -> Spec: ...

    @abstractmethod
    def _whole(self, name: str) -> Stored: ...

    def names(self) -> list[str]:
        return list(self._places)

    def spec(self, name: str) -> Spec:
        """The tensor's dtype, in safetensors' spelling, and shape, without reading it."""
        place = self._places[name]
        dtype, shape = self._whole_spec(place.name)
        if place.expert is not None:
            shape = shape[1:]
        if place.rows is not None:
            shape = (place.rows.stop - place.rows.start, *shape[1:])
        return Spec(dtype, shape)

    def stored(self, name: str) -> Stored:
        """The tensor's bytes, of a file mapped."""
        place = self._places[name]
        whole = self._whole(place.name)
        return whole if place.expert is None else files.part(whole, place.expert, place.rows)


class Checkpoint(_Source, Mapping[str, NDArray[Any]]):
    """A checkpoint's tensors by their official names, each read when it is asked for; made by `open_checkpoint`.

    As a mapping it gives NumPy arrays, bfloat16 widened to float32, so `zigzag.reference.glm.forward` runs on it.
    Experts have one tensor each, also where the files hold them fused.
    """

    def __init__(self, config_dict: dict[str, Any], config: GlmConfig, entries: dict[str, Entry]) -> None:
        super().__init__(config, entries)
        self.config_dict = config_dict
        self._entries = entries
        self._handles: dict[Path, Any] = {}

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.stored(name).values()

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places  # Mapping's own would read the tensor

    @property
    def has_mtp(self) -> bool:
        """Whether the MTP layer is there; what transformers saves lacks it."""
        return any(f"model.layers.{layer}.eh_proj.weight" in self for layer in mtp_layers(self.config))

    def torch(self, name: str) -> "Tensor":
        """The tensor as a torch tensor of its own dtype."""
        from safetensors import safe_open

        place = self._places[name]
        file = self._entries[place.name].file
        if file not in self._handles:
            self._handles[file] = safe_open(str(file), framework="pt")
        if place.expert is None:
            tensor: Tensor = self._handles[file].get_tensor(place.name)
        else:
            whole = self._handles[file].get_slice(place.name)
            tensor = whole[place.expert] if place.rows is None else whole[place.expert, place.rows]
        return tensor

    def _whole_spec(self, name: str) -> Spec:
        return Spec(self._entries[name].dtype, self._entries[name].shape)

    def _whole(self, name: str) -> Stored:
        return files.mapped(self._entries[name])


class _Given(_Source):
    """Arrays in memory."""

    def __init__(self, config: GlmConfig, tensors: Mapping[str, Any]) -> None:
        super().__init__(config, tensors)
        self._tensors = tensors
        self._last = ("", Stored("F32", (0,), ()))  # a fused tensor is taken from its device once, not for each expert

    def _whole_spec(self, name: str) -> Spec:
        return _spec_of(self._tensors[name])

    def _whole(self, name: str) -> Stored:
        if self._last[0] != name:
            self._last = name, files.stored(self._tensors[name])
        return self._last[1]


def _spec_of(tensor: Any) -> Spec:
    return Spec(files.dtype_of(tensor), tuple(tensor.shape))


def open_checkpoint(folder: str | Path) -> Checkpoint:
    """The checkpoint in a folder, checked against its config.json; tensors stay on disk.

    Raises ModelError, one for all that is wrong: no safetensors (pickled weights are refused), an index or config.json
    that cannot be read, shards that are missing or cut off, tensors that are missing, extra or of another shape.
    """
    folder = Path(folder)
    config_dict = read_config(folder / CONFIG)
    if "quantization_config" in config_dict:
        raise ModelError(f"{folder}: the weights are quantised; only checkpoints of plain floating point are read")
    config = GlmConfig.from_dict(config_dict)
    entries, unreadable = _read_shards(folder)
    specs = {name: Spec(entry.dtype, entry.shape) for name, entry in entries.items()}
    check_tensors(str(folder), config, specs, unreadable)
    return Checkpoint(config_dict, config, entries)


def read_config(path: str | Path) -> dict[str, Any]:
    """The content of a config.json; ModelError if the file is missing or damaged."""
    return read_json(path, ModelError)


def _read_shards(folder: Path) -> tuple[dict[str, Entry], dict[str, list[str]]]:
    """The tensors that can be read, and by file and reason those that cannot."""
    entries: dict[str, Entry] = {}
    unreadable: dict[str, list[str]] = {}
    for file, names in _listed_files(folder).items():
        try:
            header = files.read_header(folder / file)
        except ModelError as error:
            unreadable[str(error)] = names
            continue
        listed = set(names) if names else set(header)
        entries |= {name if name in listed else f"{name} of {file}": entry for name, entry in header.items()}
    return entries, unreadable


def _listed_files(folder: Path) -> dict[str, list[str]]:
    """Each file with the names that the index says are in it; the single file of a folder without index has no list."""
    if not (folder / INDEX).exists():
        if (folder / SINGLE).exists():
            return {SINGLE: []}
        raise ModelError(f"{folder}: {INDEX} or {SINGLE} is needed, {_instead(folder)}")
    weight_map = read_json(folder / INDEX, ModelError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{folder / INDEX}: weight_map must be an object of names and files; the index is damaged")
    listed: dict[str, list[str]] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise ModelError(f"{folder / INDEX}: {name} must lie in a file of the same folder, got {file!r}")
        listed.setdefault(file, []).append(name)
    return listed


def _instead(folder: Path) -> str:
    pickled = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLED)
    if pickled:
        return f"got pickled weights ({pickled[0]}), which are never read: unpickling runs code; convert them first"
    return "got neither; is it the folder of a checkpoint?"


def save_checkpoint(
    folder: str | Path,
    tensors: Mapping[str, Any],
    config: Mapping[str, Any] | None = None,
    *,
    fused: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a checkpoint into a new folder, whole or not at all, the bytes of the tensors as they are.

    tensors: NumPy or torch arrays by name, experts one by one or fused, or a `Checkpoint`, of which no more is in
        memory than the system keeps of a mapped file
    config: the content of config.json; default that of the `Checkpoint`
    fused: write fused experts, in place of the official names
    shard_bytes: a shard is closed before it grows beyond this

    Raises ModelError if the folder exists and is not empty, or the tensors do not fit the config.
    """
    folder = Path(folder).resolve()
    config = tensors.config_dict if config is None and isinstance(tensors, Checkpoint) else config
    if config is None:
        raise ModelError("save_checkpoint: config is needed, the content of config.json")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(f"save_checkpoint: {folder} is there already and not empty; choose a new folder")
    sizes = GlmConfig.from_dict(config)
    if isinstance(tensors, Checkpoint):
        source: _Source = tensors
        check_tensors("save_checkpoint: the checkpoint", sizes, {name: tensors.spec(name) for name in tensors}, {})
    else:
        check_tensors("save_checkpoint: what is given", sizes, {n: _spec_of(t) for n, t in tensors.items()}, {})
        source = _Given(sizes, tensors)
    outputs = fused_parts(sizes, source.names()) if fused else {name: ([name], ()) for name in source.names()}
    with _new_folder(folder) as part:
        _write_shards(part, source, outputs, shard_bytes)
        (part / CONFIG).write_text(json.dumps(dict(config), indent=2) + "\n", encoding="utf-8")


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A folder beside the one that is to be, which takes its name if the block ends well, and else vanishes."""
    part = folder.with_name(f".{folder.name}.{uuid4().hex}.part")
    part.mkdir(parents=True)
    try:
        yield part
        if folder.exists():
            folder.rmdir()  # refuses if something has come in
        os.replace(part, folder)
    except BaseException:
        shutil.rmtree(part)
        raise


def _write_shards(folder: Path, source: _Source, outputs: Mapping[str, Output], shard_bytes: int) -> None:
    """The shards and their index; the bytes of one shard are gathered at a time."""
    sizes = {name: sum(_num_bytes(source.spec(part)) for part in parts) for name, (parts, _) in outputs.items()}
    shards = _shards(sizes, shard_bytes)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        files.write_file(folder / file, {name: _gathered(source, *outputs[name]) for name in names})
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shards(sizes: Mapping[str, int], shard_bytes: int) -> list[list[str]]:
    """The names cut into shards, in their order; a tensor larger than a shard has one of its own."""
    shards: list[list[str]] = [[]]
    used = 0
    for name, size in sizes.items():
        if shards[-1] and used + size > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def _gathered(source: _Source, parts: list[str], shape: tuple[int, ...]) -> Stored:
    pieces = [source.stored(part) for part in parts]
    return files.joined(pieces, shape) if shape else pieces[0]


def _num_bytes(spec: Spec) -> int:
    return prod(spec.shape) * files.ITEM_SIZES[spec.dtype]
