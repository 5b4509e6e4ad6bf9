"""Safetensors files: headers read, tensors mapped from disk, files written; any dtype, bytes as they are.

The library safetensors checks a file and makes torch tensors of it. NumPy has no bfloat16, so its arrays are mapped
here, from where the header says that a tensor's bytes lie.
"""

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zigzag.reference.errors import ModelError

Bytes = NDArray[np.uint8]
ITEM_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # the dtypes of weights
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
_OF_ARRAY = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class Stored:
    """A tensor as a file holds it: dtype in safetensors' spelling, shape, and its bytes in one or more pieces."""

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Bytes, ...]

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * ITEM_SIZES[self.dtype]

    def values(self) -> NDArray[Any]:
        """A NumPy array without a copy; bfloat16 widened to float32, which keeps every value."""
        data = self.pieces[0] if len(self.pieces) == 1 else np.concatenate(self.pieces)
        if self.dtype == "BF16":
            return (data.view("<u2").astype(np.uint32) << 16).view(np.float32).reshape(self.shape)
        return data.view(_NUMPY[self.dtype]).reshape(self.shape)


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: its file, dtype, shape and the first of its bytes."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int


def read_header(file: Path) -> dict[str, Entry]:
    """The tensors of a file by name; ModelError with the reason if the file is not whole."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="np"):  # checks offsets, sizes, and that the bytes are there
            pass
        with open(file, "rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(length))
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"{file.name}: {error}") from error
    header.pop("__metadata__", None)
    return {
        name: Entry(file, spec["dtype"], tuple(spec["shape"]), 8 + length + spec["data_offsets"][0])
        for name, spec in header.items()
    }


def mapped(entry: Entry) -> Stored:
    """The tensor, its bytes mapped from the file: nothing is read before it is used."""
    size = prod(entry.shape) * ITEM_SIZES[entry.dtype]
    data = np.memmap(entry.file, np.uint8, "r", entry.begin, (size,)) if size else np.empty(0, np.uint8)
    return Stored(entry.dtype, entry.shape, (np.asarray(data),))


def part(stored: Stored, index: int, rows: slice | None) -> Stored:
    """``tensor[index]`` or ``tensor[index, rows]`` of a tensor in one piece, without a copy."""
    first, last, _ = (rows or slice(None)).indices(stored.shape[1])
    row = prod(stored.shape[2:]) * ITEM_SIZES[stored.dtype]
    begin = index * stored.shape[1] * row
    data = stored.pieces[0][begin + first * row : begin + last * row]
    return Stored(stored.dtype, (last - first, *stored.shape[2:]), (data,))


def joined(parts: Sequence[Stored], shape: tuple[int, ...]) -> Stored:
    """Tensors one after another as one of this shape, without a copy."""
    dtypes = {one.dtype for one in parts}
    if len(dtypes) > 1:
        raise ModelError(f"tensors of different dtypes cannot be joined: {', '.join(sorted(dtypes))}; convert them")
    return Stored(parts[0].dtype, shape, tuple(piece for one in parts for piece in one.pieces))


def dtype_of(tensor: Any) -> str:
    """The dtype of a NumPy or torch array in safetensors' spelling, or its own name where it is none of weights."""
    name = getattr(tensor.dtype, "name", str(tensor.dtype)).removeprefix("torch.")  # NumPy's name has no byte order
    return _OF_ARRAY.get(name, name)


def stored(tensor: Any) -> Stored:
    """The bytes of a NumPy array or torch tensor; without a copy where it is contiguous and in host memory."""
    dtype, shape = dtype_of(tensor), tuple(tensor.shape)
    if hasattr(tensor, "detach"):
        import torch

        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    else:
        little = tensor.astype(tensor.dtype.newbyteorder("<"), copy=False)
        data = np.ascontiguousarray(little).reshape(-1).view(np.uint8)
    return Stored(dtype, shape, (data,))


def write_file(file: Path, tensors: Mapping[str, Stored]) -> None:
    """The tensors in one file, wide dtypes first, so that each lies on a multiple of its item size."""
    names = sorted(tensors, key=lambda name: (-ITEM_SIZES[tensors[name].dtype], name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].num_bytes
        header[name] = {
            "dtype": tensors[name].dtype,
            "shape": list(tensors[name].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as opened:
        opened.write(struct.pack("<Q", len(text)) + text)
        for piece in _pieces(tensors, names):
            opened.write(piece.data)


def _pieces(tensors: Mapping[str, Stored], names: Iterable[str]) -> Iterable[Bytes]:
    return (piece for name in names for piece in tensors[name].pieces)
