"""Which experts a token goes to, and with what weights."""

from zigzag.backends import array_kind, lookup
from zigzag.ops.arrays import Array
from zigzag.reference import checks


def route_experts(
    router_logits: Array,
    bias: Array,
    *,
    top_k: int,
    num_groups: int = 1,
    top_groups: int = 1,
    normalize: bool = True,
    scaling: float = 1.0,
    backend: str = "auto",
) -> tuple[Array, Array]:
    """The `top_k` experts of each token and their weights, as DeepSeek-V3 and GLM-4.5 route (`noaux_tc`).

    ``score = sigmoid(logit)``; experts are chosen by ``score + bias``, weighted by ``score``: the bias balances the
    load and never enters a weight. The experts lie in `num_groups` equal runs of ids; only the `top_groups` runs with
    the highest sum of their two best biased scores (of the one, where a run holds one expert) are chosen from.
    Ties go to the lower id. A NaN counts as the lowest selection value.

    router_logits: [..., E]
    bias: [E] (`e_score_correction_bias`)
    top_k: at most the number of experts in `top_groups` groups; num_groups: a divisor of E
    normalize: divide the weights of a token by their sum + 1e-20; scaling: then multiply them by this number
    return: expert_ids int64 [..., top_k] by falling ``score + bias``, weights [..., top_k]

    Raises ArgumentError or KindError for shapes, counts or numbers that do not fit.
    Source: arXiv 2412.19437 section 2.1.2; transformers' Glm4MoeTopkRouter.

    backend: a name of `zigzag.list_backends()`, or "auto"; one that cannot be used raises BackendError
    """
    function = lookup("route_experts", backend, router_logits, differentiable=(router_logits, bias))
    given = checks.same_kind("route_experts", array_kind, {"router_logits": router_logits, "bias": bias})
    options = checks.check_routing(
        **given, top_k=top_k, num_groups=num_groups, top_groups=top_groups, normalize=normalize, scaling=scaling
    )
    routed: tuple[Array, Array] = function(*given.values(), **options)
    return routed
