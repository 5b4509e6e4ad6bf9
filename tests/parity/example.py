"""A call that failed, as two lines of Python that repeat it."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from zigzag import ops
from zigzag.conformance.arrays import convert, kind_of, to_numpy
from zigzag.conformance.calls import Call, Stored
from zigzag.reference.errors import ZigzagError

MOST = 60  # numbers that are written out; more go into a file
IMPORT = "from zigzag.conformance import compare, inf, nan"


def written(call: Call, backend: str, *, load: str | None, device: str, folder: Path) -> list[str]:
    """Two lines that repeat the call; its arrays are in a file of `folder` where they are too many to read."""
    places = [f"load={load!r}"] * bool(load) + [f"device={device!r}"] * (device != "cpu")
    begin = f"compare({', '.join([repr(backend), repr(call.op), *places])}, "
    if sum(value.values.size for value in call.arguments.values() if isinstance(value, Stored)) > MOST:
        return [IMPORT, f"{begin}file={str(_saved(call, folder))!r})"]
    told = ", ".join(f"{name}={_text(value)}" for name, value in call.arguments.items())
    return [IMPORT, f"{begin}{told})"]


def _text(value: Any) -> str:
    if not isinstance(value, Stored):
        return repr(value)
    shape = "" if value.values.size else f", {value.values.shape}"
    return f"({value.dtype!r}, {value.values.tolist()}{shape})"


def _saved(call: Call, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = next(p for n in range(1_000_000) if not (p := folder / f"{call.op}-{n}.npz").exists())
    arrays = {name: value for name, value in call.arguments.items() if isinstance(value, Stored)}
    rest = {name: value for name, value in call.arguments.items() if name not in arrays}
    about = json.dumps({"dtypes": {name: value.dtype for name, value in arrays.items()}, "options": rest}, default=list)
    np.savez_compressed(
        path, about=np.array(about), **{f"array_{name}": value.values for name, value in arrays.items()}
    )
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as kept:
            about = json.loads(str(kept["about"]))
            arrays = {name: Stored(dtype, kept[f"array_{name}"]) for name, dtype in about["dtypes"].items()}
    except (OSError, ValueError, KeyError) as error:
        raise ZigzagError(f"compare: {path} is no example that zigzag conform wrote: {error}") from error
    return arrays | about["options"]


def compare(
    backend: str, op: str, *, load: str | None = None, device: str = "cpu", file: str | None = None, **given: Any
) -> bool:
    """Call an op on a backend and on the reference, print both results where they differ; whether they are equal.

    load: module that registers the backend
    device: where torch tensors are made
    file: an example that `zigzag conform` wrote, instead of arguments
    given: the op's arguments by name; an array as (dtype, nested lists), of no numbers as (dtype, [], shape)

    Equal is meant to the last bit, so results that are only rounded otherwise are shown too.
    """
    from importlib import import_module

    from zigzag.conformance import arrays

    if load is not None:
        import_module(load)
    arguments = _read(Path(file)) if file is not None else {name: _parsed(value) for name, value in given.items()}
    arrays.DEVICE, before = device, arrays.DEVICE
    try:
        kind = kind_of(backend)
        found = getattr(ops, op)(**{n: _placed(v, kind) for n, v in arguments.items()}, backend=backend)
        plain = {n: _exact(v, kind) for n, v in arguments.items()}
    finally:
        arrays.DEVICE = before
    expected = getattr(ops, op)(**plain, backend="numpy")
    names = getattr(expected, "_fields", range(9))
    pairs = [(found, expected)] if not isinstance(expected, tuple) else list(zip(found, expected, strict=True))
    return all([_shown(str(name), one, true) for name, (one, true) in zip(names, pairs, strict=False)])


def _parsed(value: Any) -> Any:
    if isinstance(value, tuple) and value and isinstance(value[0], str):
        kind = np.float64 if "float" in value[0] else np.int64
        return Stored(value[0], np.array(value[1], kind).reshape(value[2] if len(value) == 3 else np.shape(value[1])))
    return value


def _placed(value: Any, kind: str) -> Any:
    if not isinstance(value, Stored):
        return value
    if "float" in value.dtype:
        return convert(value.values, kind, value.dtype)
    return convert(value.values.astype(value.dtype), kind, "")


def _exact(value: Any, kind: str) -> Any:
    """As the reference takes it: the numbers that the backend got, in float64."""
    if not isinstance(value, Stored):
        return value
    return to_numpy(_placed(value, kind)) if "float" in value.dtype else value.values.astype(value.dtype)


def _shown(name: str, found: Any, expected: Any) -> bool:
    if found is None or expected is None:
        print(f"{name}: {found}, the reference gives {expected}")
        return found is expected
    one, true = to_numpy(found), np.asarray(expected, dtype=np.float64)
    if one.shape != true.shape:
        print(f"{name}: shape {list(one.shape)}, the reference gives {list(true.shape)}")
        return False
    apart = ~((one == true) | (np.isnan(one) & np.isnan(true)))
    if apart.any():
        with np.errstate(invalid="ignore"):
            size = np.where(apart, np.nan_to_num(np.abs(one - true), nan=np.inf), -1)
        worst = np.unravel_index(np.argmax(size), size.shape)
        where = [int(n) for n in worst]
        print(f"{name}: {apart.sum()} of {one.size} differ, most at {where}: {one[worst]}, the reference {true[worst]}")
    else:
        print(f"{name}: equal")
    return not apart.any()
