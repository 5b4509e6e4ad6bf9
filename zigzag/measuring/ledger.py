"""Losses that were measured, by plan: nothing is measured twice, and a file of them survives a run that broke off."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zigzag.files.json_files import read_json, write_json
from zigzag.measuring.prompts import Prompt
from zigzag.measuring.searching import Choice, Losses
from zigzag.measuring.trials import Advance, prompt_losses
from zigzag.models.decoder import Decoder
from zigzag.plans.layers import LayerPlan, kinds_of
from zigzag.plans.window import Window
from zigzag.reference.errors import ArgumentError

FORMAT = "zigzag-trial-losses"
CLOSE = 1e-3  # of a loss: what kernels and batches may round otherwise; other weights differ by far more


class Ledger:
    """The losses of one model on given prompts, streaming layers in one window.

    path: of a JSON file to begin with, if it is there, and to write after each measurement

    Raises ArgumentError for a file of another model, of other prompts or of another window. The model's weights are
    told by measuring one of its losses again.
    """

    def __init__(
        self,
        model: Decoder,
        window: Window,
        prompts: Sequence[Prompt],
        *,
        path: str | Path | None = None,
        batch_size: int = 1,
        advance: Advance = lambda count: None,
    ) -> None:
        self.model, self.window, self.prompts, self.path = model, window, prompts, path
        self.batch_size, self.advance = batch_size, advance
        self.rows: dict[Choice, Losses] = {}
        if path is not None and Path(path).exists():
            self._read(path)

    def measure(self, choices: Sequence[Choice], bound: float = np.inf) -> Losses:
        """[choices, prompts] as `trials.prompt_losses` under layer plans with these full layers."""
        missing = [choice for choice in dict.fromkeys(choices) if not self._decided(choice, bound)]
        self.advance((len(choices) - len(missing)) * len(self.prompts))
        if missing:
            found = self._measure(missing, self.prompts, bound)
            self.rows |= dict(zip(missing, found, strict=True))
            if self.path is not None:
                self._write(self.path)
        return np.array([self.rows[choice] for choice in choices]).reshape(-1, len(self.prompts))

    def _decided(self, choice: Choice, bound: float) -> bool:
        row = self.rows.get(choice)
        return row is not None and bool(np.isfinite(row).all() or np.nansum(row) > bound * len(row))

    def _measure(self, choices: Sequence[Choice], prompts: Sequence[Prompt], bound: float) -> Losses:
        plans = [LayerPlan(kinds_of(choice), **self.window.mask) for choice in choices]
        options: dict[str, Any] = {"batch_size": self.batch_size, "advance": self.advance}
        return prompt_losses(self.model, plans, prompts, bound=bound, **options)

    def _subject(self) -> dict[str, Any]:
        ids = json.dumps([(prompt.prompt_ids, prompt.answer_ids) for prompt in self.prompts])
        return {
            "model": getattr(self.model.config, "_name_or_path", "") or type(self.model).__name__,
            "dtype": str(self.model.dtype),
            "window": [self.window.sink, self.window.recent, self.window.align],
            "prompts": hashlib.sha256(ids.encode()).hexdigest(),
        }

    def _write(self, path: str | Path) -> None:
        losses = {
            "".join("F" if full else "s" for full in choice): [None if np.isnan(loss) else float(loss) for loss in row]
            for choice, row in self.rows.items()
        }
        write_json(path, {"format": FORMAT, "version": 1, "subject": self._subject(), "losses": losses})

    def _read(self, path: str | Path) -> None:
        content = read_json(path, ArgumentError, FORMAT)
        subject, losses = content.get("subject"), content.get("losses")
        mine = self._subject()
        if not isinstance(subject, dict) or not isinstance(losses, dict) or not _fit(losses, len(self.prompts)):
            raise ArgumentError(f"{path}: losses by plan are needed; the file is damaged")
        other = [name for name in mine if subject.get(name) != mine[name]]
        if other:
            raise ArgumentError(
                f"{path}: losses of this model on these prompts are needed, these are of another "
                f"{' and '.join(other)}; give another file"
            )
        rows = {tuple(letter == "F" for letter in key): np.array(row, dtype=float) for key, row in losses.items()}
        for choice, row in rows.items():
            again = self._measure([choice], self.prompts[:1], np.inf)[0, 0]
            if not np.isclose(again, row[0], rtol=CLOSE, atol=CLOSE**2):
                raise ArgumentError(
                    f"{path}: the model's loss on the first prompt is {again:.6f} where the file says {row[0]:.6f}: "
                    f"these are losses of other weights; give another file"
                )
            break
        self.rows = rows


def _fit(losses: dict[str, Any], num_prompts: int) -> bool:
    """Whether it has a number, 0 or more, or None for each prompt, and one for the first."""
    for key, row in losses.items():
        if not key or set(key) - {"F", "s"} or not isinstance(row, list) or len(row) != num_prompts or row[0] is None:
            return False
        if any(loss is not None and (type(loss) is not float or not loss >= 0) for loss in row):
            return False
    return True
