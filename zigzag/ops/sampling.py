"""From logits to probabilities, and from probabilities and a uniform number to a token."""

from zigzag.backends import array_kind, lookup
from zigzag.ops.arrays import Array
from zigzag.reference import checks


def to_probs(
    logits: Array,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    backend: str = "auto",
) -> Array:
    """The distribution that is sampled from: temperature, then top-k, top-p, min-p, then normalised.

    Each filter sees the row that the one before left, normalised; the order is that of transformers. A token
    stays if it is

    - top-k: at least as likely as the k-th most likely (ties stay together),
    - top-p: among the most likely tokens whose mass before it is below top_p (ties: the smaller id first),
    - min-p: at least min_p times as likely as the most likely.

    The most likely token always stays. Temperature 0 gives 1 to the argmax, ties to the smallest id.

    logits: [..., V], -inf allowed for tokens that are never to come
    temperature: 0 or more; top_k: 0 keeps all; top_p: in (0, 1], 1 keeps all; min_p: in [0, 1]
    return: [..., V]; a row that holds NaN or +inf, or -inf only, gives NaN, and verification rejects there

    Raises ArgumentError for parameters out of range.

    backend: a name of `zigzag.list_backends()`, or "auto"; one that cannot be used raises BackendError
    """
    function = lookup("to_probs", backend, logits, differentiable=(logits,))
    options = checks.check_sampling("to_probs", temperature, top_k, top_p, min_p)
    given = checks.same_kind("to_probs", array_kind, {"logits": logits})
    checks.check_rows("to_probs", **given)
    checks.check_floating("to_probs", **given)
    return function(*given.values(), **options)


def sample(probs: Array, uniforms: Array, *, backend: str = "auto") -> Array:
    """The token that each uniform number picks: the smallest v with cumsum(probs)[v] > u * cumsum(probs)[-1].

    The rows need not sum to 1: their own last cumulative sum counts. If rounding leaves no such v, the last
    one with a positive weight. NaN counts as 0; a row without any weight gives -1.

    probs: [..., V] weights, 0 or more; uniforms: [...] in [0, 1)
    return: int64 [...]

    backend: a name of `zigzag.list_backends()`, or "auto"; one that cannot be used raises BackendError
    """
    function = lookup("sample", backend, probs)
    given = checks.same_kind("sample", array_kind, {"probs": probs, "uniforms": uniforms})
    checks.check_sample(**given)
    checks.check_floating("sample", **given)
    return function(*given.values())
