"""Drafters: where drafts come from, and when they end. `draft.py` says what a drafter is."""

from zigzag.generation.drafting.draft import Draft, Drafter, Request
from zigzag.generation.drafting.jacobi import JacobiDrafter, LookaheadDrafter
from zigzag.generation.drafting.lookup import LookupDrafter
from zigzag.generation.drafting.model import ModelDrafter, streaming_drafter
from zigzag.generation.drafting.mtp import MtpDrafter
from zigzag.generation.drafting.relay import RelayDrafter
from zigzag.generation.drafting.retrieval import RetrievalDrafter
from zigzag.generation.drafting.staged import StagedDrafter
from zigzag.generation.drafting.termination import Confidence, EntropyBound, ExpectedGain, Fixed, Heuristic

__all__ = [
    "Confidence",
    "Draft",
    "Drafter",
    "EntropyBound",
    "ExpectedGain",
    "Fixed",
    "Heuristic",
    "JacobiDrafter",
    "LookaheadDrafter",
    "LookupDrafter",
    "ModelDrafter",
    "MtpDrafter",
    "RelayDrafter",
    "Request",
    "RetrievalDrafter",
    "StagedDrafter",
    "streaming_drafter",
]
