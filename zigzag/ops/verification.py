"""The acceptance rules for chains of drafts."""

from typing import Any

from zigzag.backends import array_kind, lookup
from zigzag.ops.arrays import Array
from zigzag.reference import RULES, checks
from zigzag.reference.trees import check_tree
from zigzag.reference.verification import Verdict

# drafts, draft rows, target rows, uniform numbers, numbers of drafts
Arrays = tuple[Array, Array | None, Array, Array | None, Array | None]


def verify_greedy(
    draft_token_ids: Array,
    target_logits: Array,
    *,
    num_draft_tokens: Array | None = None,
    backend: str = "auto",
    validate: bool = True,
) -> Verdict:
    """Accept drafts while they are the target's argmax; then the argmax itself. Lossless for greedy decoding.

    Ties go to the smallest id, NaN never wins, a row with nothing above -inf gives -1.

    draft_token_ids: [B, K]; target_logits: [B, K + 1, V] logits or probabilities
    num_draft_tokens: [B] drafts to read in each row, default K

    backend: a name of `zigzag.list_backends()`, or "auto"; one that cannot be used raises BackendError
    validate: check the values too: ids, counts, probabilities, uniforms. It waits for the device, so switch it off in a
        loop; bad values then reject, or end a row's drafts, where they would raise
    """
    arrays = draft_token_ids, None, target_logits, None, num_draft_tokens
    return judged("greedy", arrays, backend, validate)


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
    """Speculative sampling: token by token, accepted while u * q(x) < p(x). Lossless for any q.

    At the first rejection the next token is drawn from max(p - q, 0), at the end from the target's next row. p = 0
    is never accepted; q = 0 < p always is. A NaN rejects, and the target row is drawn from. Source: Leviathan et
    al., arXiv 2211.17192, Alg. 1; Chen et al., arXiv 2302.01318.

    draft_token_ids: [B, K]
    draft_probs: [B, K, V] what each draft was really drawn from, after all processing; None: without chance
    target_probs: [B, K + 1, V]; uniforms: [B, K + 1] in [0, 1)
    temperature: None: the target rows are probabilities; a number: they are logits (0: the argmax's)
    num_draft_tokens: [B] drafts to read in each row, default K

    backend: a name of `zigzag.list_backends()`, or "auto"; one that cannot be used raises BackendError
    validate: check the values too: ids, counts, probabilities, uniforms. It waits for the device, so switch it off in a
        loop; bad values then reject, or end a row's drafts, where they would raise
    """
    arrays = draft_token_ids, draft_probs, target_probs, uniforms, num_draft_tokens
    return judged("residual", arrays, backend, validate, temperature=temperature)


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
    """Block verification: lossless, and never fewer accepted drafts on average than `verify_residual`.

    The last draft i with u_i < h_i counts, even if earlier ones failed. Source: Sun et al., arXiv 2403.10444. With
    deterministic drafts the number of accepted ones has the same law as `verify_residual`'s.

    Arguments as `verify_residual`.

    backend: a name of `zigzag.list_backends()`, or "auto"; one that cannot be used raises BackendError
    validate: check the values too: ids, counts, probabilities, uniforms. It waits for the device, so switch it off in a
        loop; bad values then reject, or end a row's drafts, where they would raise
    """
    arrays = draft_token_ids, draft_probs, target_probs, uniforms, num_draft_tokens
    return judged("block", arrays, backend, validate, temperature=temperature)


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
    """Sampler match: draw t_i from target row i, accept while the draft is t_i, emit t_i at the first mismatch.

    Lossless whatever the draft, and its tokens are those of plain sampling with the same uniforms.

    draft_token_ids: [B, K]; target_probs: [B, K + 1, V]; uniforms: [B, K + 1] in [0, 1)
    temperature: None: the target rows are probabilities; a number: they are logits (0: the argmax's)
    num_draft_tokens: [B] drafts to read in each row, default K

    backend: a name of `zigzag.list_backends()`, or "auto"; one that cannot be used raises BackendError
    validate: check the values too: ids, counts, probabilities, uniforms. It waits for the device, so switch it off in a
        loop; bad values then reject, or end a row's drafts, where they would raise
    """
    arrays = draft_token_ids, None, target_probs, uniforms, num_draft_tokens
    return judged("exact", arrays, backend, validate, temperature=temperature)


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
    """LOSSY. Typical acceptance: p(x) > min(epsilon, delta * exp(-H(p))), H with log(p + 1e-5).

    On rejection, and after the last draft, a token is drawn from the target row. Source: Medusa, arXiv 2401.10774,
    section 3.3.1 (its helper functions have the two defaults swapped).

    Arguments as `verify_exact`; epsilon, delta: 0 or more.

    backend: a name of `zigzag.list_backends()`, or "auto"; one that cannot be used raises BackendError
    validate: check the values too: ids, counts, probabilities, uniforms. It waits for the device, so switch it off in a
        loop; bad values then reject, or end a row's drafts, where they would raise
    """
    arrays = draft_token_ids, None, target_probs, uniforms, num_draft_tokens
    return judged("typical", arrays, backend, validate, temperature=temperature, epsilon=epsilon, delta=delta)


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
    """LOSSY. Relaxed acceptance for thinking: one of the top_n tokens with p(x) >= max(p) - delta.

    On rejection, and after the last draft, the argmax. top_n = 1 or, without ties, delta = 0 is `verify_greedy`.
    Source: TensorRT-LLM.

    draft_token_ids: [B, K]; target_probs: [B, K + 1, V]
    temperature: None: the target rows are probabilities; a number: they are logits (0: the argmax's)

    backend: a name of `zigzag.list_backends()`, or "auto"; one that cannot be used raises BackendError
    validate: check the values too: ids, counts, probabilities, uniforms. It waits for the device, so switch it off in a
        loop; bad values then reject, or end a row's drafts, where they would raise
    """
    arrays = draft_token_ids, None, target_probs, None, num_draft_tokens
    return judged("relaxed", arrays, backend, validate, temperature=temperature, top_n=top_n, delta=delta)


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
    """LOSSY. Accept one of the target's k most likely tokens; k = 1 is `verify_greedy`.

    On rejection, and after the last draft, the argmax. Source: blockwise parallel decoding, arXiv 1811.03115.

    draft_token_ids: [B, K]; target_probs: [B, K + 1, V] logits or probabilities
    temperature: None: the target rows are probabilities; a number: they are logits (0: the argmax's)

    backend: a name of `zigzag.list_backends()`, or "auto"; one that cannot be used raises BackendError
    validate: check the values too: ids, counts, probabilities, uniforms. It waits for the device, so switch it off in a
        loop; bad values then reject, or end a row's drafts, where they would raise
    """
    arrays = draft_token_ids, None, target_probs, None, num_draft_tokens
    return judged("top_k", arrays, backend, validate, temperature=temperature, k=k)


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
    """LOSSY for lenience < 1. Speculative sampling with u * lenience * q(x) < p(x).

    No token gets more than p(x) / lenience. On rejection a token of max(p - q, 0), as without lenience. Source:
    arXiv 2211.17192, A.5.

    Arguments as `verify_residual`; lenience: in [0, 1].

    backend: a name of `zigzag.list_backends()`, or "auto"; one that cannot be used raises BackendError
    validate: check the values too: ids, counts, probabilities, uniforms. It waits for the device, so switch it off in a
        loop; bad values then reject, or end a row's drafts, where they would raise
    """
    arrays = draft_token_ids, draft_probs, target_probs, uniforms, num_draft_tokens
    return judged("lenient", arrays, backend, validate, temperature=temperature, lenience=lenience)


def judged(name: str, arrays: Arrays, backend: str, validate: bool, **options: Any) -> Verdict:
    """Check, then call the backend's op for the rule of this name; `options` are the op's.

    With a `temperature` the target rows are logits; broken ones are no error, they reject as `to_probs` says.
    """
    rule, is_tree = RULES[name], "parents" in options
    op = rule.tree if is_tree else rule.chain
    rows = "target_logits" if rule.takes_logits else "target_probs"
    names = ("draft_token_ids", "draft_probs", rows, "uniforms", "num_draft_tokens")
    function = lookup(op, backend, arrays[2])
    given = checks.same_kind(op, array_kind, dict(zip(names, arrays, strict=True)))
    checks.check_draft_shapes(op, *given.values())
    plain = checks.check_rule_options(op, **{name: value for name, value in options.items() if name != "parents"})
    options |= {name: value for name, value in plain.items() if name in options}
    if is_tree:
        check_tree(op, options["parents"], given["draft_token_ids"].shape[1])
    if validate:
        checks.check_draft_values(
            op,
            *given.values(),
            are_probs=not rule.takes_logits and options.get("temperature") is None,
            parents=options.get("parents"),
            replacement=options.get("replacement", True),
            one_source=rule.one_source,
        )
    *inputs, counts = given.values()
    verdict: Verdict = function(*rule.arguments(*inputs), num_draft_tokens=counts, **options)
    return verdict
