"""The errors of the project. Innermost folder, so that every other folder may raise them."""


class ZigzagError(Exception):
    """Base of every error that zigzag raises on purpose.

    Message style: ``op: what is needed, what arrived, what to do``.
    """


class ArgumentError(ZigzagError, ValueError):
    """An argument has an impossible value or shape."""


class KindError(ZigzagError, TypeError):
    """An argument has the wrong type or dtype."""


class BackendError(ZigzagError, RuntimeError):
    """A backend that was asked for cannot be used."""


class PlanError(ZigzagError, ValueError):
    """A layer plan, head scores or a file of them cannot be used."""


class CacheError(ZigzagError, RuntimeError):
    """A key/value cache is in a state that cannot give the right result."""


class ModelError(ZigzagError, ValueError):
    """A model, checkpoint or tokenizer cannot be used."""


class OutOfMemoryError(ZigzagError, MemoryError):
    """The device has too little memory for what was asked; nothing has been computed."""


class ProcessError(ZigzagError, RuntimeError):
    """Processes that run a model together were given different things, or one of them failed."""
