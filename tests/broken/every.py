"""All mistakes, in the order of the ops."""

from broken import attending, chains, experts, heads, layers, sampling, trees
from broken.mistakes import Mistake

from zigzag.reference import OPS

MODULES = (attending, layers, heads, sampling, chains, trees, experts)
FOUND = [mistake for module in MODULES for mistake in module.here]
MISTAKES: list[Mistake] = sorted(FOUND, key=lambda mistake: OPS.index(mistake.op))
