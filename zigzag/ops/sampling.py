"""From logits to probabilities, and from probabilities and a uniform number to a token."""

from zigzag.backends import array_kind, lookup
from zigzag.ops.documented import Array, documented
from zigzag.reference import checks


@documented
def to_probs(
    logits: Array,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    backend: str = "auto",
) -> Array:
    function = lookup("to_probs", backend, logits)
    checks.check_sampling("to_probs", temperature, top_k, top_p, min_p)
    given = checks.same_kind("to_probs", array_kind, {"logits": logits})
    checks.check_rows("to_probs", **given)
    checks.check_floating("to_probs", **given)
    return function(*given.values(), temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)


@documented
def sample(probs: Array, uniforms: Array, *, backend: str = "auto") -> Array:
    function = lookup("sample", backend, probs)
    given = checks.same_kind("sample", array_kind, {"probs": probs, "uniforms": uniforms})
    checks.check_sample(**given)
    checks.check_floating("sample", **given)
    return function(*given.values())
