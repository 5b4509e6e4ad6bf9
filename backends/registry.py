"""The backends by name, which of them a call uses, and why.

A backend is a module (or any object) with functions named as the ops of `zigzag.reference`; an op it
lacks is not supported. Choice: the argument `backend=`, then `use_backend`, then the environment variable
ZIGZAG_BACKEND, then automatic by the kind and device of the arrays. An explicit choice is honoured or
refused, never replaced.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from threading import Lock
from typing import Any, TypeVar

from zigzag.reference import OPS
from zigzag.reference.errors import BackendError

# In the order of the automatic choice.
BUILTIN = {
    "numpy": "zigzag.reference",
    "triton": "zigzag.backends.triton",
    "torch": "zigzag.backends.torch",
    "cupy": "zigzag.backends.cupy",
}
REQUIRES = {"numpy": "numpy", "triton": "triton", "torch": "torch", "cupy": "cupy"}
INSTALLED_BY = {"cupy": "cupy-cuda12x or cupy-cuda13x, as your CUDA is"}  # where the package is not named as the module
ARRAY_KINDS = {"numpy": ("numpy",), "triton": ("torch",), "torch": ("torch",), "cupy": ("cupy",)}
ENTRY_POINT_GROUP = "zigzag.backends"
AVAILABILITY = "TRITON_INTERPRET"  # by which a backend of ours says whether it can run for arrays that are on no card
MOST_KEPT = 1024
Given = TypeVar("Given")

_log = logging.getLogger("zigzag")
_registered: dict[str, Any] = {}
_chosen: ContextVar[str | None] = ContextVar("zigzag_backend", default=None)
_announced: set[tuple[str, str]] = set()
_writing = Lock()  # for what is looked at and then written; nobody's code runs under it
_kept: dict[tuple[Any, ...], list[tuple[str, Any]]] = {}  # replaced, not emptied: a late answer goes to the old one


@dataclass(frozen=True)
class BackendInfo:
    """One line of `list_backends`: `reason` says why a backend is not available, else it is empty."""

    name: str
    available: bool
    reason: str
    device: str
    ops: tuple[str, ...]


def register_backend(name: str, backend: Any) -> None:
    """Make `backend` (a module, its dotted name, or an object with ops) selectable as `name`.

    It may set `ARRAY_KINDS` (tuple of top-level module names of the arrays it takes, default any) and
    `DEVICE` (text for `list_backends`). A name that is taken is an error: nothing is replaced silently, also where
    two threads register at once.
    """
    if not isinstance(name, str) or not name or name == "auto":
        raise BackendError(f"register_backend: the name must be a non-empty string other than 'auto', got {name!r}")
    if not isinstance(backend, str) and not _ops_of(backend):
        raise BackendError(f"register_backend: {name!r} has none of the ops {', '.join(OPS)}; name its functions so")
    if name in _entry_points():
        raise BackendError(f"register_backend: the name {name!r} is an installed package's; choose another")
    with _writing:
        if name in BUILTIN or name in _registered:
            raise BackendError(f"register_backend: the name {name!r} is taken; choose another or unregister it")
        _registered[name] = backend
    forget_choices()


def unregister_backend(name: str) -> None:
    """Forget a backend that `register_backend` added."""
    if _registered.pop(name, None) is None:
        raise BackendError(f"unregister_backend: no backend was registered as {name!r}")
    forget_choices()


def forget_choices() -> None:
    """Ask again which backends can be used; `register_backend` and `unregister_backend` do so."""
    global _kept
    _kept = {}


def backend_names() -> list[str]:
    """All known names: built in, registered, and of the entry-point group `zigzag.backends`."""
    return list(dict.fromkeys([*BUILTIN, *_registered, *_entry_points()]))


def get_backend(name: str) -> Any:
    """The backend's module or object; BackendError with what is missing and how to get it."""
    given = _registered.get(name)  # asked once: another thread may take it away
    if given is not None and not isinstance(given, str):
        return given
    if given is None and name not in BUILTIN and name not in _entry_points():
        raise BackendError(f"backend {name!r} is not known; known: {', '.join(backend_names())}")
    needs = REQUIRES.get(name)
    if needs is not None and find_spec(needs) is None:
        package = INSTALLED_BY.get(needs, needs)
        raise BackendError(f"backend {name!r} needs {needs!r}, which is not installed: pip install {package}")
    backend = _tried(name, "could not be imported", lambda: _imported(name, given))
    if reason := _tried(name, "fails to say whether it can run", getattr(backend, "unavailable", str)):
        raise BackendError(f"backend {name!r} cannot run here: {reason}")
    if name not in BUILTIN and not _ops_of(backend):
        raise BackendError(f"backend {name!r} has none of the ops of zigzag.reference; name its functions as they are")
    return backend


def _imported(name: str, module: str | None) -> Any:
    path = BUILTIN.get(name) or module
    return import_module(path) if path else _entry_points()[name].load()


def _tried(name: str, failing: str, ask: Callable[[], Given]) -> Given:
    """Somebody else's code may raise anything, or end the process: then that backend fails, and nothing else does."""
    try:
        return ask()
    except ImportError as error:
        raise BackendError(f"backend {name!r} {failing}: {error}") from error
    except (Exception, SystemExit) as error:
        raise BackendError(f"backend {name!r} {failing}: {type(error).__name__}: {error}") from error


def list_backends() -> list[BackendInfo]:
    """Every known backend: name, whether it is available or why not, its device and its ops."""
    return [_info(name) for name in backend_names()]


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Use the backend `name` for all ops inside the block; safe across threads and tasks."""
    get_backend(name)
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def lookup(op: str, backend: str, array: Any, *, differentiable: tuple[Any, ...] = ()) -> Any:
    """The function of `op` for these arrays, by the order of choice that this module states.

    differentiable: the arrays by which the result has a derivative, of which some may want a gradient

    Which backends take such arrays is asked once for each op, name that was asked for, type, dtype and device type of
    the array. What was asked for, whether a gradient is wanted and the function itself are looked at in every call, and
    refusals are not kept.
    """
    name, source = _explicit(backend)
    is_cuda = getattr(array, "is_cuda", False)
    environment = None if is_cuda or name is None else os.environ.get(AVAILABILITY)
    kept, key = _kept, (op, name, environment, type(array), getattr(array, "dtype", None), is_cuda)
    try:
        found, is_kept = kept.get(key), len(kept) < MOST_KEPT
    except TypeError:  # a dtype of somebody else's arrays that has no hash
        found, is_kept = None, False
    if found is None:
        found = _candidates(op, array) if name is None else [(name, _named(op, name, source, array))]
        if is_kept:
            kept[key] = found
    for taken, candidate in found:
        if not _loses_gradients(candidate, differentiable):
            if name is None:
                _announce(taken, array)
            return _function(op, taken, candidate)
    raise BackendError(
        f"{op}: backend {name!r} gives no gradients, and these arrays want them; use 'torch', or torch.no_grad()"
    )


def _function(op: str, name: str, backend: Any) -> Any:
    function = getattr(backend, op, None)
    if function is None:
        having = [info.name for info in list_backends() if op in info.ops]
        raise BackendError(f"{op}: backend {name!r} does not support it; these do: {', '.join(having)}")
    return function


def _explicit(backend: str) -> tuple[str | None, str]:
    if not isinstance(backend, str):
        raise BackendError(f"backend must be a name, got {backend!r}; known: auto, {', '.join(backend_names())}")
    if backend != "auto":
        return backend, "backend="
    if (name := _chosen.get()) is not None:
        return name, "use_backend"
    if name := os.environ.get("ZIGZAG_BACKEND"):
        return name, "ZIGZAG_BACKEND"
    return None, ""


def _candidates(op: str, array: Any) -> list[tuple[str, Any]]:
    """The automatic choice, and what comes after it where a gradient is wanted that it would lose."""
    kind = array_kind(array)
    names = [name for name in BUILTIN if kind in ARRAY_KINDS[name] and _serves(name, op, array)]
    if not names:
        raise BackendError(
            f"{op}: no backend takes arrays of type {type(array).__module__}.{type(array).__name__} by itself; "
            f"name one with backend=: {', '.join(backend_names())}"
        )
    return [(name, get_backend(name)) for name in names]


def _announce(name: str, array: Any) -> None:
    kind = array_kind(array)
    if (name, kind) in _announced:
        return
    with _writing:
        first = (name, kind) not in _announced
        _announced.add((name, kind))
    if first:
        _log.info("backend %r chosen automatically: the arrays are %s arrays", name, kind)


@cache
def _reason(name: str) -> str:
    """Why a backend cannot be used, asked once: the automatic choice stands in the path of every call."""
    try:
        get_backend(name)
    except BackendError as error:
        return str(error)
    return ""


def _serves(name: str, op: str, array: Any) -> bool:
    """Whether the automatic choice may take this backend for the op on arrays like this one."""
    if name != "triton":
        return True
    if getattr(array, "is_cuda", False) is not True or _reason(name):
        return False
    backend = get_backend(name)
    return hasattr(backend, op) and bool(backend.takes(array))


def _named(op: str, name: str, source: str, array: Any) -> Any:
    """The backend that was asked for; BackendError where it does not take such arrays, or cannot run."""
    _check_kind(op, name, source, array)
    return get_backend(name)


def _check_kind(op: str, name: str, source: str, array: Any) -> None:
    kinds = ARRAY_KINDS.get(name) or getattr(get_backend(name), "ARRAY_KINDS", None)
    if kinds is not None and array_kind(array) not in kinds:
        raise BackendError(
            f"{op}: backend {name!r} (from {source}) takes {' or '.join(kinds)} arrays, got a {array_kind(array)} "
            f"array; convert it yourself or choose another backend"
        )


def _loses_gradients(backend: Any, arrays: tuple[Any, ...]) -> bool:
    """Whether a gradient is wanted that the backend would lose without a word."""
    wants = getattr(backend, "wants_gradient", None)
    return wants is not None and bool(wants(*arrays))


def array_kind(array: Any) -> str:
    """Top-level module of the array's type; plain lists and numbers count as NumPy."""
    kind = type(array).__module__.partition(".")[0]
    return "numpy" if kind == "builtins" else kind


def _info(name: str) -> BackendInfo:
    try:
        backend = get_backend(name)
        ask = getattr(backend, "device_name", lambda: getattr(backend, "DEVICE", "cpu"))
        device = _tried(name, "fails to name its device", ask)
    except BackendError as error:
        return BackendInfo(name, False, str(error), "", ())
    return BackendInfo(name, True, "", device, _ops_of(backend))


def _ops_of(backend: Any) -> tuple[str, ...]:
    return tuple(op for op in OPS if callable(getattr(backend, op, None)))


@cache
def _entry_points() -> dict[str, Any]:
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP) if point.name not in BUILTIN}
