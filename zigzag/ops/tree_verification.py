"""The acceptance rules for token trees."""

from collections.abc import Sequence

from zigzag.ops.arrays import Array
from zigzag.ops.verification import judged
from zigzag.reference.verification import Verdict


def verify_tree_greedy(
    draft_token_ids: Array,
    target_logits: Array,
    *,
    parents: Sequence[int],
    num_draft_tokens: Array | None = None,
    backend: str = "auto",
    validate: bool = True,
) -> Verdict:
    """From the root, walk to the child that is the target's argmax; then the argmax. Lossless for greedy decoding.

    draft_token_ids: [B, N]; target_logits: [B, N + 1, V], row 0 after the last committed token, n + 1 after node n
    parents: [N] earlier node or -1; num_draft_tokens: [B] how many first nodes a row has, default N

    backend: a name of `zigzag.list_backends()`, or "auto"; one that cannot be used raises BackendError
    validate: check the values too: ids, counts, probabilities, uniforms. It waits for the device, so switch it off in a
        loop; bad values then reject, or end a row's drafts, where they would raise
    """
    arrays = draft_token_ids, None, target_logits, None, num_draft_tokens
    return judged("greedy", arrays, backend, validate, parents=parents)


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
    """Multi-round residual sampling down a tree; lossless. On a chain it is `verify_residual`.

    The children of a node are tested in the order of their index, which must be the order in which they were drawn;
    each rejection takes its share out of the target row. With replacement: SpecInfer (arXiv 2305.09781), and
    deterministic candidates (`draft_probs=None`). Without: EAGLE, Sequoia (arXiv 2402.12374) with its uniform
    fallback; a sibling that comes twice is then never accepted.

    draft_token_ids: [B, N]
    draft_probs: [B, N, V] for each node the row that its siblings were drawn from, before any was taken out
    target_probs: [B, N + 1, V]; uniforms: [B, N + 1]: a coin for each node, then the draw
    parents: [N] earlier node or -1; num_draft_tokens: [B] how many first nodes a row has, default N

    backend: a name of `zigzag.list_backends()`, or "auto"; one that cannot be used raises BackendError
    validate: check the values too: ids, counts, probabilities, uniforms. It waits for the device, so switch it off in a
        loop; bad values then reject, or end a row's drafts, where they would raise
    """
    arrays = draft_token_ids, draft_probs, target_probs, uniforms, num_draft_tokens
    return judged("residual", arrays, backend, validate, parents=parents, replacement=replacement)


def verify_tree_traversal(
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
    """Traversal verification of a tree, leaves first; lossless. On a chain it is `verify_block` (arXiv 2505.12398).

    A path counts as a whole: where its leaf is not accepted the node before that is tested, with what is left of it,
    and so on; each node that is left takes its share out of its parent's target row. So no tree has fewer accepted
    drafts than by `verify_tree_residual`, on average. Arguments as there.

    backend: a name of `zigzag.list_backends()`, or "auto"; one that cannot be used raises BackendError
    validate: check the values too: ids, counts, probabilities, uniforms. It waits for the device, so switch it off in a
        loop; bad values then reject, or end a row's drafts, where they would raise
    """
    arrays = draft_token_ids, draft_probs, target_probs, uniforms, num_draft_tokens
    return judged("traversal", arrays, backend, validate, parents=parents, replacement=replacement)


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
    """K-SEQ down a tree; lossless. Siblings must be drawn independently from one q (SpecTr, arXiv 2310.15141).

    Arguments as `verify_tree_residual`. Siblings that are deterministic and equal count as drawn from a one-hot q.

    backend: a name of `zigzag.list_backends()`, or "auto"; one that cannot be used raises BackendError
    validate: check the values too: ids, counts, probabilities, uniforms. It waits for the device, so switch it off in a
        loop; bad values then reject, or end a row's drafts, where they would raise
    """
    arrays = draft_token_ids, draft_probs, target_probs, uniforms, num_draft_tokens
    return judged("k_seq", arrays, backend, validate, parents=parents)
