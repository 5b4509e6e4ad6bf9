"""Feeding a fixed cache where the device alone knows how many tokens a row has, and what these are.

The work of a step feeds at positions that it computes; the host says before it where there is memory, and afterwards
what the cache holds, and how far behind that tokens may lie that nobody keeps.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from zigzag.reference.errors import CacheError
from zigzag.reference.trees import Tree
from zigzag.running.fixed import FixedStore
from zigzag.running.host import Output
from zigzag.running.runner import Runner
from zigzag.running.stores import Drawn, Program


def fixed(runner: Runner) -> FixedStore:
    """The runner's store; CacheError for one that grows."""
    if not isinstance(runner.store, FixedStore):
        raise CacheError("only a fixed cache is fed without the host")
    return runner.store


def on_device(runner: Runner, what: Hashable, work: Callable[..., Any], *given: Tensor | None) -> Any:
    """What `work` gives for these tensors, as one step that is captured in its second run. what: see `Steps.run`"""
    runner.check_valid()
    with runner.void_on_error():
        return fixed(runner).replayed(what, work, *given)


def feed(runner: Runner, ids: Tensor, positions: Tensor, tree: Tree | None = None) -> Output:
    """Within such work: logits and states of a chain of every row at positions [B, T], or of a tree's nodes."""
    return fixed(runner).feed_onward(runner.call, ids, positions, tree)


def settle(runner: Runner, nodes: Tensor, positions: Tensor, lengths: Tensor) -> None:
    """Within such work: of the tree fed last bring `nodes` to positions [B, n], -1 for none; rows then hold lengths."""
    fixed(runner).settle_onward(nodes, positions, lengths)


def run_program(
    runner: Runner,
    program: Program,
    ids: Tensor,
    positions: Tensor,
    coins: Tensor,
    hidden: Tensor | None,
    tree: tuple[int, ...] | None = None,
) -> Drawn:
    """Within such work: as `Runner.at_once`, given tokens at positions [B, T], -1 for padding."""
    return fixed(runner).program_onward(runner.call, program, ids, positions, coins, hidden, tree)


def fed(runner: Runner, count: int, most: int) -> None:
    """The device has fed `count` tokens of each row, for `keep`; behind those held it may have written `most`."""
    store = fixed(runner)
    store.written = np.maximum(store.written, runner.lengths + most)
    runner.fed = count


def hold(runner: Runner, sequences: Sequence[list[int]], most: int) -> None:
    """The device has brought these into the cache by itself, and perhaps `most` more tokens behind them."""
    runner.tokens = [list(row) for row in sequences]
    fed(runner, 0, most)
