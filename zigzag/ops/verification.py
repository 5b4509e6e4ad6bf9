"""The acceptance rules for chains of drafts."""

from typing import Any

from zigzag.ops.documented import Array, documented
from zigzag.ops.drafts import verify
from zigzag.reference import checks
from zigzag.reference.verification import Verdict


@documented
def verify_greedy(
    draft_token_ids: Array,
    target_logits: Array,
    *,
    num_draft_tokens: Array | None = None,
    backend: str = "auto",
    validate: bool = True,
) -> Verdict:
    arrays = {"draft_token_ids": draft_token_ids, "target_logits": target_logits}
    return verify("verify_greedy", arrays, num_draft_tokens, backend, validate)


@documented
def verify_residual(
    draft_token_ids: Array,
    draft_probs: Array | None,
    target_probs: Array,
    uniforms: Array,
    *,
    temperature: float | None = None,
    num_draft_tokens: Array | None = None,
    backend: str = "auto",
    validate: bool = True,
) -> Verdict:
    arrays = _sampled(draft_token_ids, draft_probs, target_probs, uniforms)
    return verify("verify_residual", arrays, num_draft_tokens, backend, validate, temperature=temperature)


@documented
def verify_block(
    draft_token_ids: Array,
    draft_probs: Array | None,
    target_probs: Array,
    uniforms: Array,
    *,
    temperature: float | None = None,
    num_draft_tokens: Array | None = None,
    backend: str = "auto",
    validate: bool = True,
) -> Verdict:
    arrays = _sampled(draft_token_ids, draft_probs, target_probs, uniforms)
    return verify("verify_block", arrays, num_draft_tokens, backend, validate, temperature=temperature)


@documented
def verify_exact(
    draft_token_ids: Array,
    target_probs: Array,
    uniforms: Array,
    *,
    temperature: float | None = None,
    num_draft_tokens: Array | None = None,
    backend: str = "auto",
    validate: bool = True,
) -> Verdict:
    arrays = {"draft_token_ids": draft_token_ids, "target_probs": target_probs, "uniforms": uniforms}
    return verify("verify_exact", arrays, num_draft_tokens, backend, validate, temperature=temperature)


@documented
def verify_typical(
    draft_token_ids: Array,
    target_probs: Array,
    uniforms: Array,
    *,
    epsilon: float = 0.09,
    delta: float = 0.3,
    temperature: float | None = None,
    num_draft_tokens: Array | None = None,
    backend: str = "auto",
    validate: bool = True,
) -> Verdict:
    checks.check_range("verify_typical", epsilon=epsilon, delta=delta)
    arrays = {"draft_token_ids": draft_token_ids, "target_probs": target_probs, "uniforms": uniforms}
    options = {"temperature": temperature, "epsilon": epsilon, "delta": delta}
    return verify("verify_typical", arrays, num_draft_tokens, backend, validate, **options)


@documented
def verify_relaxed(
    draft_token_ids: Array,
    target_probs: Array,
    *,
    top_n: int = 10,
    delta: float = 0.6,
    temperature: float | None = None,
    num_draft_tokens: Array | None = None,
    backend: str = "auto",
    validate: bool = True,
) -> Verdict:
    checks.check_range("verify_relaxed", delta=delta)
    checks.check_count("verify_relaxed", "top_n", top_n)
    arrays = {"draft_token_ids": draft_token_ids, "target_probs": target_probs}
    options = {"temperature": temperature, "top_n": top_n, "delta": delta}
    return verify("verify_relaxed", arrays, num_draft_tokens, backend, validate, **options)


@documented
def verify_top_k(
    draft_token_ids: Array,
    target_probs: Array,
    *,
    k: int,
    temperature: float | None = None,
    num_draft_tokens: Array | None = None,
    backend: str = "auto",
    validate: bool = True,
) -> Verdict:
    checks.check_count("verify_top_k", "k", k)
    arrays = {"draft_token_ids": draft_token_ids, "target_logits": target_probs}  # either will do
    options = {"temperature": temperature, "k": k}
    return verify("verify_top_k", arrays, num_draft_tokens, backend, validate, **options)


@documented
def verify_lenient(
    draft_token_ids: Array,
    draft_probs: Array | None,
    target_probs: Array,
    uniforms: Array,
    *,
    lenience: float,
    temperature: float | None = None,
    num_draft_tokens: Array | None = None,
    backend: str = "auto",
    validate: bool = True,
) -> Verdict:
    checks.check_fraction("verify_lenient", "lenience", lenience)
    arrays = _sampled(draft_token_ids, draft_probs, target_probs, uniforms)
    options = {"temperature": temperature, "lenience": lenience}
    return verify("verify_lenient", arrays, num_draft_tokens, backend, validate, **options)


def _sampled(draft_token_ids: Array, draft_probs: Array | None, target_probs: Array, uniforms: Array) -> dict[str, Any]:
    return {
        "draft_token_ids": draft_token_ids,
        "draft_probs": draft_probs,
        "target_probs": target_probs,
        "uniforms": uniforms,
    }
