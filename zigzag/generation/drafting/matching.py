"""Prompt lookup where the text lies on the device: what `LookupDrafter` finds on the host, found by comparisons."""

import torch
from torch import Tensor


def latest_place(text: Tensor, lengths: Tensor, longest: int) -> Tensor:
    """[B] where the last n tokens of a text stand before, the longest n and then the latest place first: behind them.

    text: [B, C] tokens; lengths: [B] of each row, what lies behind has no meaning; longest: n to start from
    return: at least 1 and below the length; 0 where not even the last token came before
    """
    ends = torch.arange(text.shape[1], device=text.device)
    matches = (ends < lengths[:, None]) & (ends > 0)
    best = torch.zeros_like(lengths)
    for n in range(1, longest + 1):
        token = text.gather(1, (lengths - n).clamp(min=0)[:, None])
        matches = matches & (text == token).roll(n, dims=1) & (ends >= n)
        place = torch.where(matches, ends, 0).amax(dim=1)
        best = torch.where(place > 0, place, best)
    return best


def copied(text: Tensor, lengths: Tensor, place: Tensor, count: int) -> Tensor:
    """[B, count] the tokens of each text from `place` on, -1 behind its end and where the place is 0."""
    places = place[:, None] + torch.arange(count, device=text.device)
    tokens = text.gather(1, places.clamp(max=text.shape[1] - 1))
    return torch.where((place > 0)[:, None] & (places < lengths[:, None]), tokens, -1)
