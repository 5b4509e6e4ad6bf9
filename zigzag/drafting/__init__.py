"""Drafters: where drafts come from, and when they end. `draft.py` says what a drafter is."""

from zigzag.drafting.draft import Draft, Drafter, Request
from zigzag.drafting.lookup import LookupDrafter
from zigzag.drafting.model import ModelDrafter, streaming_drafter
from zigzag.drafting.mtp import MtpDrafter
from zigzag.drafting.termination import Confidence, EntropyBound, ExpectedGain, Fixed, Heuristic

__all__ = [
    "Confidence",
    "Draft",
    "Drafter",
    "EntropyBound",
    "ExpectedGain",
    "Fixed",
    "Heuristic",
    "LookupDrafter",
    "ModelDrafter",
    "MtpDrafter",
    "Request",
    "streaming_drafter",
]
