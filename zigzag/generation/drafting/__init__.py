"""Drafters: where drafts come from, and when they end. `draft.py` says what a drafter is."""

from zigzag.generation.drafting.adaptive import AdaptiveDrafter
from zigzag.generation.drafting.draft import Draft, Drafter, Request
from zigzag.generation.drafting.early_exit import ExitDrafter
from zigzag.generation.drafting.grown import GrownTree
from zigzag.generation.drafting.heads import HeadsDrafter
from zigzag.generation.drafting.jacobi import JacobiDrafter, LookaheadDrafter
from zigzag.generation.drafting.lookup import LookupDrafter
from zigzag.generation.drafting.model import ModelDrafter, streaming_drafter
from zigzag.generation.drafting.mtp import MtpDrafter
from zigzag.generation.drafting.online import OnlineDrafter
from zigzag.generation.drafting.parallel import ParallelDrafter
from zigzag.generation.drafting.phrases import PhraseDrafter
from zigzag.generation.drafting.relay import RelayDrafter
from zigzag.generation.drafting.retrieval import RetrievalDrafter
from zigzag.generation.drafting.staged import StagedDrafter
from zigzag.generation.drafting.suffix import SuffixDrafter
from zigzag.generation.drafting.termination import Certain, Confidence, EntropyBound, ExpectedGain, Fixed, Heuristic
from zigzag.generation.drafting.trained import drafter_of

__all__ = [
    "AdaptiveDrafter",
    "Certain",
    "Confidence",
    "Draft",
    "Drafter",
    "EntropyBound",
    "ExitDrafter",
    "ExpectedGain",
    "Fixed",
    "GrownTree",
    "HeadsDrafter",
    "Heuristic",
    "JacobiDrafter",
    "LookaheadDrafter",
    "LookupDrafter",
    "ModelDrafter",
    "MtpDrafter",
    "OnlineDrafter",
    "ParallelDrafter",
    "PhraseDrafter",
    "RelayDrafter",
    "Request",
    "RetrievalDrafter",
    "StagedDrafter",
    "SuffixDrafter",
    "drafter_of",
    "streaming_drafter",
]
