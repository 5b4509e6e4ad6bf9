"""Checks of arguments, one message style: what the reference and the front door `zigzag.ops` share."""

from zigzag.reference.checks.experts import (
    check_expert_ids,
    check_experts,
    check_routing,
)
from zigzag.reference.checks.options import (
    as_real,
    as_whole,
    check_count,
    check_rule_options,
    check_sampling,
    check_scale,
    check_streaming_window,
    check_window,
    window_options,
)
from zigzag.reference.checks.shapes import (
    check_attention,
    check_draft_shapes,
    check_floating,
    check_heads,
    check_integers,
    check_parents,
    check_positions,
    check_ragged,
    check_rows,
    check_sample,
    check_shape,
    same_kind,
)
from zigzag.reference.checks.values import (
    check_draft_values,
    check_drafts,
)

__all__ = [
    "as_real",
    "as_whole",
    "check_attention",
    "check_count",
    "check_draft_shapes",
    "check_draft_values",
    "check_drafts",
    "check_expert_ids",
    "check_experts",
    "check_floating",
    "check_heads",
    "check_integers",
    "check_parents",
    "check_positions",
    "check_ragged",
    "check_routing",
    "check_rows",
    "check_rule_options",
    "check_sample",
    "check_sampling",
    "check_scale",
    "check_shape",
    "check_streaming_window",
    "check_window",
    "same_kind",
    "window_options",
]
