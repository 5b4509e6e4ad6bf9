"""What the acceptance rules share at the front door: which checks, in which order."""

from typing import Any

from zigzag.backends import array_kind, lookup
from zigzag.ops.documented import Array
from zigzag.reference import checks
from zigzag.reference.checks import check_draft_values
from zigzag.reference.trees import check_tree


def verify(
    op: str, arrays: dict[str, Array], num_draft_tokens: Array | None, backend: str, validate: bool, **options: Any
) -> Any:
    """Check, then call the backend's `op` with `arrays`, its positional arguments in order, and `options`.

    With a `temperature` the target rows are logits; broken ones are no error, they reject as `to_probs` says.
    """
    function = lookup(op, backend, arrays.get("target_probs", arrays.get("target_logits")))
    given = checks.same_kind(op, array_kind, {**arrays, "num_draft_tokens": num_draft_tokens})
    target = given.get("target_probs", given.get("target_logits"))
    counts = given["num_draft_tokens"]
    common = given["draft_token_ids"], given.get("draft_probs"), target, given.get("uniforms"), counts
    checks.check_draft_shapes(op, *common)
    temperature = options.get("temperature")
    if temperature is not None:
        checks.check_sampling(op, temperature, 0, 1.0, 0.0)
    if "parents" in options:
        check_tree(op, options["parents"], given["draft_token_ids"].shape[1])
    if validate:
        check_draft_values(
            op,
            *common,
            are_probs="target_probs" in given and temperature is None,
            parents=options.get("parents"),
            replacement=options.get("replacement", True),
            one_source=op == "verify_tree_k_seq",
        )
    return function(*(given[name] for name in arrays), num_draft_tokens=counts, **options)
