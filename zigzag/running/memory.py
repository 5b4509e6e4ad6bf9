"""Whether a call fits the device's memory, told before anything is computed; also where a given cache would grow.

What is counted: keys and values of all rows, a piece of a prompt (`pieces`), and the final states of the prompts where
a drafter reads them. Not counted: that a layer of a given cache is there twice while it grows. What torch cannot use
for want of one large enough piece of memory is not known here: an error that comes later says what would help.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from zigzag.plans.heads import Plan
from zigzag.plans.window import Window
from zigzag.reference.errors import OutOfMemoryError
from zigzag.running.host import Host
from zigzag.running.model_layers import Placement, place
from zigzag.running.pieces import SMALLEST, token_bytes

GIB = 1 << 30


@dataclass(frozen=True)
class Need:
    """Bytes that a call needs beside the weights.

    row: of a row's keys and values; rows; piece: of so many prompt tokens at once, each of `token`; states: of final
    states that are collected; held: what of the keys and values a given cache has already
    """

    row: int
    rows: int
    piece: int
    token: int
    states: int
    held: int = 0

    @property
    def total(self) -> int:
        return max(0, self.row * self.rows - self.held) + self.piece * self.token + self.states


def check_fits(
    host: Host,
    plan: Plan | None,
    rows: int,
    tokens: int,
    *,
    prompt: int,
    spare: int,
    keep_hidden: bool,
    held: int = 0,
) -> None:
    """OutOfMemoryError, with what would fit, where rows of so many tokens do not fit a GPU.

    prompt: tokens of a row that are to be computed before its first new one; held: bytes that a given cache has
    """
    if host.device.type != "cuda":
        return
    need = need_of(host, plan, rows, tokens, prompt=prompt, spare=spare, keep_hidden=keep_hidden, held=held)
    free = free_bytes(host.device)
    if need.total > free:
        parts = {
            f"keys and values {_gib(need.row * rows)}": True,
            f"of which a given cache has {_gib(need.held)}": need.held > 0,
            f"{need.piece:,} prompt tokens at once {_gib(need.piece * need.token)}": True,
            f"final states for the drafter {_gib(need.states)}": need.states > 0,
        }
        raise OutOfMemoryError(
            f"generate: {rows} rows of up to {tokens:,} tokens need {_gib(need.total)} beside the weights "
            f"({', '.join(part for part, is_there in parts.items() if is_there)}), but {host.device} has "
            f"{_gib(free)} free: {_way_out(host, need, free, tokens, spare)}"
        )


@contextmanager
def told_what_helps() -> Iterator[None]:
    """Where memory runs out in the block although it seemed enough, torch's error also says what to do."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        error.add_note(
            "zigzag: the model and a given cache are as they were before this call; it needs less memory with a "
            "smaller prefill_chunk_size, fewer rows, or a plan with fewer full layers"
        )
        raise


def need_of(
    host: Host,
    plan: Plan | None,
    rows: int,
    tokens: int,
    *,
    prompt: int,
    spare: int,
    keep_hidden: bool,
    held: int = 0,
) -> Need:
    """What rows of so many tokens, drafts included, need; as in `check_fits`."""
    size = host.model.dtype.itemsize
    return Need(
        row=row_bytes(host, place(plan, host.layers, own_windows=True), tokens, spare),
        rows=rows,
        piece=min(host.piece_size(tokens), rows * max(1, prompt)),
        token=token_bytes(host.config, size),
        states=rows * tokens * host.config.hidden_size * size if keep_hidden else 0,
        held=held,
    )


def row_bytes(host: Host, placement: Placement, tokens: int, spare: int) -> int:
    """Keys and values of one row of all layers."""
    layers, slots = host.layers, 0
    heads = layers.num_kv_heads // layers.share[1]
    for window, groups in zip(placement.windows, placement.groups, strict=True):
        full = heads if groups is True else 0 if groups is False else sum(groups)
        slots += full * tokens
        if window is not None:
            slots += (heads - full) * min(tokens, window.size + spare)
    return 2 * slots * layers.head_size * host.model.dtype.itemsize


def free_bytes(device: torch.device) -> int:
    """Bytes that torch can still give: what the device has free, and what torch holds and nobody uses."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + unused


def _way_out(host: Host, need: Need, free: int, tokens: int, spare: int) -> str:
    """What would fit: a smaller piece, fewer full layers, fewer rows; in this order."""
    left = (free - max(0, need.row * need.rows - need.held) - need.states) // need.token
    if left >= SMALLEST:
        return f"prefill_chunk_size={1 << (left.bit_length() - 1)} would fit"
    if need.held:
        return "go on with fewer tokens, or give no cache and a plan with fewer full layers"
    layers = host.layers
    window = Window(128, 896)
    for num_full in range(len(layers.full) - 1, -1, -1):
        streams = set(layers.full[num_full:])
        windows = tuple(window if i in streams else own for i, own in enumerate(layers.windows))
        placement = Placement(windows, tuple(each is None for each in windows))
        row = row_bytes(host, placement, tokens, spare)
        if row < need.row and row * need.rows + SMALLEST * need.token + need.states <= free:
            size = f"sink {window.sink} and recent {window.recent}"
            return f"a LayerPlan with at most {num_full} of {len(layers.full)} layers full ({size}) would fit"
    rows = (free - SMALLEST * need.token) // (need.row + need.states // need.rows)
    return f"at most {rows} rows at once would fit" if rows >= 1 else "shorter rows, or a smaller model, are needed"


def _gib(count: int) -> str:
    return f"{count / GIB:.2f} GiB"
