"""How well a model foretells natural text, by the position of the token: what a plan loses with distance."""

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zigzag.measuring.prompts import token_ids
from zigzag.models.decoder import CausalLM
from zigzag.reference.checks import check_count
from zigzag.reference.errors import ArgumentError, ModelError

Rows = NDArray[np.int64]


def file_rows(tokenizer: Any, texts: Iterable[str], length: int, count: int) -> Rows:
    """[count, length] tokens: each row whole files one after another from the begin of one, the last of them cut.

    No file is in two rows. After a file stands the tokenizer's end-of-sequence token, if it has one.

    Raises ArgumentError if the texts are too short for so many rows, with how many they give.
    """
    length, count = check_count("file_rows", "length", length, 2), check_count("file_rows", "count", count)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    rows: list[list[int]] = [[]]
    for text in texts:
        rows[-1] += [*token_ids(tokenizer, text), *end]
        if len(rows[-1]) >= length:
            if len(rows) == count:
                return np.array([row[:length] for row in rows], dtype=np.int64)
            rows.append([])
    raise ArgumentError(
        f"file_rows: texts for {count} rows of {length} tokens are needed, these give {len(rows) - 1}; ask for fewer"
    )


def losses_by_position(
    model: CausalLM,
    rows: Rows,
    *,
    bins: int = 8,
    batch_size: int = 1,
    piece: int = 512,
    advance: Callable[[int], object] = lambda count: None,
) -> NDArray[np.float64]:
    """[rows, bins] mean negative log-likelihood in nats of the tokens in each of `bins` equal parts of a row.

    The first token is not foretold; the first part lacks it.

    rows: [R, T] token ids
    piece: positions whose logits are there at a time: [batch_size, piece, V] in float32 is the most memory
    advance: called with the number of rows done

    Raises ArgumentError for parts of no token, ModelError for a model whose logits are not its head's output.
    """
    bins = check_count("losses_by_position", "bins", bins)
    piece = check_count("losses_by_position", "piece", piece)
    batch_size = check_count("losses_by_position", "batch_size", batch_size)
    if rows.ndim != 2 or rows.shape[0] < 1 or rows.shape[1] < 2 * bins:
        raise ArgumentError(f"losses_by_position: rows must be [R >= 1, T >= {2 * bins}], got {list(rows.shape)}")
    edges = np.linspace(0, rows.shape[1], bins + 1).astype(int)
    found = []
    for begin in range(0, len(rows), batch_size):
        ids = torch.from_numpy(rows[begin : begin + batch_size]).to(model.device)
        with torch.inference_mode():
            losses = _losses(model, ids, piece).double().cpu().numpy()
        parts = [losses[:, max(0, a - 1) : b - 1].mean(axis=1) for a, b in pairwise(edges)]
        found.append(np.stack(parts, axis=1))
        advance(len(ids))
    return np.concatenate(found)


def _losses(model: CausalLM, ids: Tensor, piece: int) -> Tensor:
    """[B, T - 1] the loss of each token but the first."""
    seen: list[Tensor] = []
    head: Any = model.get_output_embeddings()
    hook = model.get_decoder().register_forward_hook(lambda module, given, output: seen.append(output[0]))
    try:
        last = model(ids, use_cache=False, logits_to_keep=1).logits
    finally:
        hook.remove()
    (states,) = seen
    _check_head(head(states[:, -1:]), last)
    pieces = zip(states[:, :-1].split(piece, dim=1), ids[:, 1:].split(piece, dim=1), strict=True)
    losses = [
        torch.nn.functional.cross_entropy(head(part).float().transpose(1, 2), told, reduction="none")
        for part, told in pieces
    ]
    return torch.cat(losses, dim=1)


def _check_head(own: Tensor, told: Tensor) -> None:
    """ModelError where a model scales or caps what its head gives: the pieces here would not."""
    scale = float(told.float().abs().max())
    if not torch.allclose(own.float(), told.float(), rtol=0, atol=1e-3 * max(scale, 1e-30)):
        raise ModelError(
            "losses_by_position: the model changes the logits of its head (scales or caps them), which is not known "
            "here; measure its losses with its own forward"
        )
