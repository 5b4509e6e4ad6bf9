"""The one place where hypothesis draws inputs: small, awkward, ragged."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st

from zigzag.conformance.arrays import interpreted
from zigzag.reference import visible
from zigzag.reference.visibility import default_positions


@dataclass
class Case:
    """Inputs of an attention op as float64 and int64 NumPy arrays; `options` are its keyword arguments."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    grad_output: np.ndarray
    gate: np.ndarray
    window: dict
    options: dict = field(default_factory=dict)


@st.composite
def windows(draw, align: int) -> dict:
    sink, recent = (align * draw(st.integers(0, 5)) for _ in range(2))
    if sink + recent == 0:
        recent = align
    return {"sink": sink, "recent": recent, "align": align}


@st.composite
def lengths(draw) -> int:
    """1 to 24, or 130 to 300; a long one shrinks to a short one that is not the shortest."""
    keys = draw(st.integers(1, 24))
    return keys + draw(st.integers(129, 276)) if draw(st.booleans()) else keys


@st.composite
def parents(draw, nodes: int) -> list[int]:
    return [draw(st.integers(-1, node - 1)) for node in range(nodes)]


SHORT = 40
KINDS = ("default", "padded", "shared", "tree", "lengths")  # of positions
REGIONS = {  # property: the kinds that show it
    "tolerance": ("default",),
    "windows": ("default",),
    "positions": ("padded", "shared", "tree"),
    "lengths": ("lengths",),
}


@st.composite
def cases(draw, kinds: Sequence[str] = KINDS) -> Case:
    """Inputs of attention. kinds: of their positions; without options, padded rows, slots in any order that all rows
    share, a tree at the end, rows that end earlier."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batch, groups, share = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    keys = draw(lengths())
    queries = keys if draw(st.booleans()) else draw(st.integers(1, keys))
    size, value_size = draw(st.sampled_from([(1, 1), (3, 5), (8, 1), (8, 5), (64, 64)]))  # the last: tensor cores

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float16).astype(np.float64)  # exact in every dtype but bfloat16

    case = Case(
        normal(batch, groups * share, queries, size),
        normal(batch, groups, keys, size),
        normal(batch, groups, keys, value_size),
        normal(batch, groups * share, queries, value_size),
        rng.choice([-0.5, 0.0, 0.5, 1.0, 2.0], groups),
        draw(windows(draw(st.sampled_from([1, 1, 4])))),
    )
    kind = draw(st.sampled_from(kinds))
    if kind == "padded":
        padding = rng.integers(0, keys + 1, batch)
        positions = np.maximum(np.arange(keys) - padding[:, None], -1)
        case.options = {"query_positions": positions[:, keys - queries :], "key_positions": positions}
    elif kind == "shared":
        positions = rng.permutation(keys + 4)[:keys] - 1
        case.options = {"query_positions": positions[keys - queries :], "key_positions": positions}
    elif kind == "lengths":
        ends = rng.integers(0, keys + 1, batch)  # row b has ends[b] tokens; what lies behind them nobody sees
        case.options = {"query_positions": np.maximum(ends[:, None] - queries + np.arange(queries), -1)}
    elif kind == "tree":
        case.options = {"parents": draw(parents(draw(st.integers(1, min(keys, 6)))))}
    if draw(st.booleans()):
        case.options["scale"] = draw(st.sampled_from([0.25, 1.5]))
    return case


def shortened(case: Case, backend: str) -> None:
    """Keeps only the last queries of a long prompt where kernels are interpreted."""
    if interpreted(backend) and case.query.shape[2] > SHORT:
        case.query, case.grad_output = case.query[:, :, -SHORT:], case.grad_output[:, :, -SHORT:]
        if "query_positions" in case.options:
            case.options["query_positions"] = case.options["query_positions"][..., -SHORT:]


def spoiled(case: Case, window: dict) -> None:
    """NaN in all keys and values that no query sees: uninitialised memory, as caches have it."""
    keys = case.options.get("key_positions", default_positions(1, case.key.shape[2], case.options.get("parents"))[1])
    queries = case.options.get("query_positions", keys[..., -case.query.shape[2] :])
    seen = visible(queries, keys, parents=case.options.get("parents"), **window).any(axis=-2)
    hidden = np.broadcast_to(~seen, (case.key.shape[0], case.key.shape[2]))
    for states in (case.key, case.value):
        states[np.broadcast_to(hidden[:, None], states.shape[:3])] = np.nan


@st.composite
def paged(draw) -> tuple[Case, np.ndarray]:
    """A case whose keys and values lie in pages, some of them missing, and its block table; other pages hold NaN."""
    case, size = draw(cases()), draw(st.sampled_from([1, 3, 16]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batch, groups, keys, _ = case.key.shape
    pages = max(1, keys // size)
    table = rng.permutation(batch * pages + 3)[: batch * pages].reshape(batch, pages)

    def scattered(states: np.ndarray) -> np.ndarray:
        whole = np.resize(states, (batch, groups, pages * size, states.shape[3]))
        into = np.full((batch * pages + 3, groups, size, states.shape[3]), np.nan)
        into[table] = whole.reshape(batch, groups, pages, size, -1).swapaxes(1, 2)
        return into

    queries = min(case.query.shape[2], pages * size)
    case.query, case.grad_output = case.query[:, :, :queries], case.grad_output[:, :, :queries]
    if "key_positions" in case.options:
        case.options = {"query_positions": rng.integers(-1, pages * size, (batch, queries))}
    if len(case.options.get("parents") or ()) > pages * size:
        del case.options["parents"]
    if "query_positions" in case.options:
        case.options["query_positions"] = case.options["query_positions"][..., :queries]

    case.key, case.value = scattered(case.key), scattered(case.value)
    missing = rng.random(table.shape) < draw(st.sampled_from([0, 0.3]))
    return case, np.where(missing, -1, table)


@st.composite
def scores(draw) -> np.ndarray:
    """[L, G] with many ties."""
    layers, heads = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    values = st.sampled_from([-0.5, 0.0, 0.25, 0.5, 0.75, 1.0])
    return np.array([[draw(values) for _ in range(heads)] for _ in range(layers)])
