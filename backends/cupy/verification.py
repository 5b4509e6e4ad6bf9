"""The acceptance rules for chains of drafts, for CuPy arrays: raw kernels where they take them, else array calls."""

from zigzag.backends.cupy.raw import verification as kernel
from zigzag.backends.eager import verification as eager
from zigzag.backends.eager.arrays import Array
from zigzag.backends.eager.verification import (
    verify_block,
    verify_exact,
    verify_lenient,
    verify_relaxed,
    verify_top_k,
    verify_typical,
)
from zigzag.reference.verification import Verdict

__all__ = [
    "verify_block",
    "verify_exact",
    "verify_greedy",
    "verify_lenient",
    "verify_relaxed",
    "verify_residual",
    "verify_top_k",
    "verify_typical",
]


def verify_greedy(draft_token_ids: Array, target_logits: Array, *, num_draft_tokens: Array | None = None) -> Verdict:
    if kernel.chosen(draft_token_ids, target_logits):
        return kernel.greedy(draft_token_ids, target_logits, num_draft_tokens)
    return eager.verify_greedy(draft_token_ids, target_logits, num_draft_tokens=num_draft_tokens)


def verify_residual(
    draft_token_ids: Array,
    draft_probs: Array | None,
    target_probs: Array,
    uniforms: Array,
    *,
    temperature: float | None = None,
    num_draft_tokens: Array | None = None,
) -> Verdict:
    arrays = (draft_token_ids, draft_probs, target_probs, uniforms)
    if temperature != 0 and kernel.chosen(draft_token_ids, target_probs, draft_probs):
        return kernel.residual(*arrays, num_draft_tokens, temperature)
    return eager.verify_residual(*arrays, temperature=temperature, num_draft_tokens=num_draft_tokens)
