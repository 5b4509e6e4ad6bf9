"""The acceptance rules for token trees."""

from collections.abc import Sequence

from zigzag.ops.documented import Array, documented
from zigzag.ops.drafts import verify
from zigzag.reference.verification import Verdict


@documented
def verify_tree_greedy(
    draft_token_ids: Array,
    target_logits: Array,
    *,
    parents: Sequence[int],
    num_draft_tokens: Array | None = None,
    backend: str = "auto",
    validate: bool = True,
) -> Verdict:
    arrays = {"draft_token_ids": draft_token_ids, "target_logits": target_logits}
    return verify("verify_tree_greedy", arrays, num_draft_tokens, backend, validate, parents=parents)


@documented
def verify_tree_residual(
    draft_token_ids: Array,
    draft_probs: Array | None,
    target_probs: Array,
    uniforms: Array,
    *,
    parents: Sequence[int],
    replacement: bool = True,
    num_draft_tokens: Array | None = None,
    backend: str = "auto",
    validate: bool = True,
) -> Verdict:
    arrays = {
        "draft_token_ids": draft_token_ids,
        "draft_probs": draft_probs,
        "target_probs": target_probs,
        "uniforms": uniforms,
    }
    options = {"parents": parents, "replacement": replacement}
    return verify("verify_tree_residual", arrays, num_draft_tokens, backend, validate, **options)


@documented
def verify_tree_k_seq(
    draft_token_ids: Array,
    draft_probs: Array | None,
    target_probs: Array,
    uniforms: Array,
    *,
    parents: Sequence[int],
    num_draft_tokens: Array | None = None,
    backend: str = "auto",
    validate: bool = True,
) -> Verdict:
    arrays = {
        "draft_token_ids": draft_token_ids,
        "draft_probs": draft_probs,
        "target_probs": target_probs,
        "uniforms": uniforms,
    }
    return verify("verify_tree_k_seq", arrays, num_draft_tokens, backend, validate, parents=parents)
