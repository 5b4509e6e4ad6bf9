"""The ops of `zigzag.reference`, faster: one folder a backend, one file an op family, and the choice between them.

`zigzag.backends.registry` says how a backend is chosen; `docs/adding-a-backend.md` how to add one.
"""

from zigzag.backends.registry import (
    ARRAY_KINDS,
    BUILTIN,
    ENTRY_POINT_GROUP,
    INSTALLED_BY,
    REQUIRES,
    BackendInfo,
    array_kind,
    backend_names,
    get_backend,
    list_backends,
    lookup,
    register_backend,
    unregister_backend,
    use_backend,
)

__all__ = [
    "ARRAY_KINDS",
    "BUILTIN",
    "ENTRY_POINT_GROUP",
    "INSTALLED_BY",
    "REQUIRES",
    "BackendInfo",
    "array_kind",
    "backend_names",
    "get_backend",
    "list_backends",
    "lookup",
    "register_backend",
    "unregister_backend",
    "use_backend",
]
