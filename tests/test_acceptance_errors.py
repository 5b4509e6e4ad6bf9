"""Bad arguments of the acceptance rules: an error that names the op, what is needed and what came; or, with
validate=False, a result that is defined."""

import numpy as np
import pytest

from zigzag import ArgumentError, KindError, ops, reference
from zigzag.reference.checks import values as checks_values

NAN, INF = np.nan, np.inf
ROW = [0.5, 0.25, 0.25]
KINDS = ["numpy", "torch"]
TREE = {"parents": [-1, -1]}
SAMPLED = {
    "draft_token_ids": [[0, 1]],
    "draft_probs": [[ROW] * 2],
    "target_probs": [[ROW] * 3],
    "uniforms": [[0.5] * 3],
}
BY_OP = {
    "verify_greedy": ({"draft_token_ids": [[0, 1]], "target_logits": [[ROW] * 3]}, {}),
    "verify_relaxed": ({k: SAMPLED[k] for k in ("draft_token_ids", "target_probs")}, {}),
    "verify_top_k": ({k: SAMPLED[k] for k in ("draft_token_ids", "target_probs")}, {"k": 2}),
    "verify_exact": ({k: v for k, v in SAMPLED.items() if k != "draft_probs"}, {}),
    "verify_typical": ({k: v for k, v in SAMPLED.items() if k != "draft_probs"}, {}),
    "verify_residual": (SAMPLED, {}),
    "verify_block": (SAMPLED, {}),
    "verify_lenient": (SAMPLED, {"lenience": 0.5}),
    "verify_tree_greedy": ({"draft_token_ids": [[0, 1]], "target_logits": [[ROW] * 3]}, TREE),
    "verify_tree_residual": (SAMPLED, TREE),
    "verify_tree_traversal": (SAMPLED, TREE),
    "verify_tree_k_seq": (SAMPLED, TREE),
}
SAMPLING = [op for op, (arrays, _) in BY_OP.items() if "uniforms" in arrays]
DRAWN = [op for op, (arrays, _) in BY_OP.items() if "draft_probs" in arrays]


def array(values, kind: str):
    made = np.asarray(values)
    if kind == "numpy" or values is None:
        return None if values is None else made
    torch = pytest.importorskip("torch", reason="torch is not installed")
    return torch.from_numpy(np.array(made))


def call(op: str, kind: str, changes: dict, **options):
    """The op of the front door with some of its valid arguments replaced."""
    arrays, needed = BY_OP[op]
    given = {name: array(changes.get(name, values), kind) for name, values in arrays.items()}
    rest = {name: value for name, value in changes.items() if name not in arrays}
    if rest.get("num_draft_tokens") is not None:
        rest["num_draft_tokens"] = array(rest["num_draft_tokens"], kind)
    return getattr(ops, op)(**given, **{**needed, **rest, **options})


def test_all_rules_are_here() -> None:
    assert set(BY_OP) == {op for op in reference.OPS if op.startswith("verify")}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("op", BY_OP)
def test_valid_arguments_pass(op: str, kind: str) -> None:
    call(op, kind, {})
    call(op, kind, {"num_draft_tokens": [1]})
    call(op, kind, {"num_draft_tokens": [1], "draft_token_ids": [[0, -1]]})


VALUES = [  # ops, changes, words of the message
    (SAMPLING, {"target_probs": [[ROW, [NAN, 0.5, 0.5], ROW]]}, "target_probs must be finite .* row [0, 1]"),
    (SAMPLING, {"target_probs": [[ROW, ROW, [INF, 0.0, 0.0]]]}, "target_probs must be finite .* row [0, 2]"),
    (SAMPLING, {"target_probs": [[[1.5, -0.5, 0.0], ROW, ROW]]}, "target_probs must be .* 0 or more"),
    (SAMPLING, {"target_probs": [[[0.5, 0.2, 0.2], ROW, ROW]]}, "target_probs must sum to 1, .* sums to 0.9;"),
    (["verify_relaxed"], {"target_probs": [[[5.0, 0.2, 0.2], ROW, ROW]]}, "must sum to 1, .* zigzag.ops.to_probs"),
    (DRAWN, {"draft_probs": [[[0.5, 0.5, NAN], ROW]]}, "draft_probs must be finite .* row [0, 0]"),
    (DRAWN, {"draft_probs": [[[0.5, 0.5, 0.5], ROW]]}, "draft_probs must sum to 1, .* sums to 1.5"),
    (DRAWN, {"draft_probs": [[[0.0, 0.5, 0.5], ROW]]}, "do not belong to the drafted tokens: token 0"),
    (SAMPLING, {"uniforms": [[0.5, 1.0, 0.5]]}, "uniforms must be in [0, 1), got 1.0"),
    (SAMPLING, {"uniforms": [[0.5, 0.5, -0.25]]}, "uniforms must be in [0, 1), got -0.25"),
    (SAMPLING, {"uniforms": [[NAN, 0.5, 0.5]]}, "uniforms must be in [0, 1), got nan"),
    (BY_OP, {"draft_token_ids": [[0, 3]]}, "draft ids must be in [0, 3), got 3 in row 0, draft 1"),
    (BY_OP, {"draft_token_ids": [[-1, 0]]}, "draft ids must be in [0, 3), got -1"),
    (BY_OP, {"num_draft_tokens": [3]}, "num_draft_tokens[0] must be in [0, 2], got 3"),
    (BY_OP, {"num_draft_tokens": [-1]}, "num_draft_tokens[0] must be in [0, 2], got -1"),
]
SHAPES = [
    (BY_OP, {"draft_token_ids": [0, 1]}, "draft_token_ids must have shape [B, K], got [2]", ArgumentError),
    (BY_OP, {"draft_token_ids": [[0.0, 1.0]]}, "draft_token_ids must be integers, got", KindError),
    (SAMPLING, {"target_probs": [[ROW] * 2]}, "target rows must have shape [B, 3, V]", ArgumentError),
    (SAMPLING, {"target_probs": [[[1, 0, 0]] * 3]}, "target rows must be floating point, got", KindError),
    (SAMPLING, {"target_probs": [[[0.0] * 0] * 3]}, "vocabulary V must have at least one token", ArgumentError),
    (SAMPLING, {"uniforms": [[0.5] * 2]}, "uniforms must have shape [B, 3]", ArgumentError),
    (SAMPLING, {"uniforms": [[0] * 3]}, "uniforms must be floating point", KindError),
    (DRAWN, {"draft_probs": [[ROW]]}, "draft_probs must have shape [B, K, V] with K = 2", ArgumentError),
    (DRAWN, {"draft_probs": [[[0.5, 0.5]] * 2]}, "draft_probs must have shape [B, K, V] with V = 3", ArgumentError),
    (DRAWN, {"draft_probs": [[[1, 0, 0]] * 2]}, "draft_probs must be floating point", KindError),
    (BY_OP, {"num_draft_tokens": [1, 1]}, "num_draft_tokens must have shape [B] with B = 1", ArgumentError),
    (BY_OP, {"num_draft_tokens": [1.0]}, "num_draft_tokens must be integers", KindError),
]
OPTIONS = [
    ("verify_lenient", {"lenience": 1.5}, "lenience must be in [0, 1], got 1.5"),
    ("verify_lenient", {"lenience": -0.5}, "lenience must be in [0, 1], got -0.5"),
    ("verify_lenient", {"lenience": NAN}, "lenience must be in [0, 1], got nan"),
    ("verify_top_k", {"k": 0}, "k must be a whole number of at least 1, got 0"),
    ("verify_top_k", {"k": 1.5}, "k must be a whole number of at least 1, got 1.5"),
    ("verify_relaxed", {"top_n": 0}, "top_n must be a whole number of at least 1, got 0"),
    ("verify_relaxed", {"delta": -1.0}, "delta must be 0 or more, got -1.0"),
    ("verify_typical", {"epsilon": -0.1}, "epsilon must be 0 or more, got -0.1"),
    ("verify_typical", {"delta": NAN}, "delta must be 0 or more, got nan"),
    *[(op, {"parents": [-1, 1]}, "parents[1] must be -1 or an earlier node, got 1") for op in BY_OP if "tree" in op],
    *[(op, {"parents": [-2, 0]}, "parents[0] must be -1 or an earlier node, got -2") for op in BY_OP if "tree" in op],
    *[(op, {"parents": [-1]}, "one parent for each of the 2 nodes, got 1") for op in BY_OP if "tree" in op],
]
CHAINS = [op for op in BY_OP if "tree" not in op and op != "verify_greedy"]
OPTIONS += [
    *[(op, {"temperature": -1.0}, "temperature must be a finite number, 0 or more, got -1.0") for op in CHAINS],
    *[(op, {"temperature": NAN}, "temperature must be a finite number, 0 or more, got nan") for op in CHAINS],
]
FLAT = [(op, changes, words, ArgumentError) for some, changes, words in VALUES for op in some]
FLAT_SHAPES = [(op, *rest) for some, *rest in SHAPES for op in some]


def pattern(op: str, words: str) -> str:
    escaped = words.replace("[", r"\[").replace("]", r"\]").replace("(", r"\(").replace(")", r"\)")
    return f"^{op}: .*{escaped}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("op", "changes", "words", "error"), FLAT + FLAT_SHAPES)
def test_bad_arrays(op: str, changes: dict, words: str, error: type[Exception], kind: str) -> None:
    with pytest.raises(error, match=pattern(op, words)):
        call(op, kind, changes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("op", "changes", "words"), OPTIONS)
def test_bad_options(op: str, changes: dict, words: str, kind: str) -> None:
    for validate in (True, False):
        with pytest.raises(ArgumentError, match=pattern(op, words)):
            call(op, kind, changes, validate=validate)


@pytest.mark.parametrize(("op", "changes", "words", "error"), FLAT_SHAPES)
def test_shapes_are_always_checked(op: str, changes: dict, words: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=pattern(op, words)):
        call(op, "numpy", changes, validate=False)


@pytest.mark.parametrize(
    ("op", "changes", "words"),
    [(op, c, w) for op, c, w in OPTIONS]
    + [(op, c, w) for op, c, w, _ in FLAT_SHAPES]
    + [(op, c, w) for op, c, w, _ in FLAT if "draft_token_ids" in c or "num_draft_tokens" in c],
)
def test_the_reference_checks_too(op: str, changes: dict, words: str) -> None:
    arrays, needed = BY_OP[op]
    with pytest.raises((ArgumentError, KindError), match=pattern(op, words)):
        getattr(reference, op)(**{**arrays, **needed, **changes})


def test_only_what_is_read_is_checked() -> None:
    for kind in KINDS:
        call(
            "verify_residual",
            kind,
            {
                "num_draft_tokens": [0],
                "draft_token_ids": [[-1, 99]],
                "uniforms": [[0.5, NAN, 2.0]],
                "draft_probs": [[[NAN] * 3] * 2],
                "target_probs": [[ROW, [NAN] * 3, [7.0] * 3]],
            },
        )


def test_rounded_rows_pass() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    rows = torch.rand(2, 3, 1000, dtype=torch.float64).softmax(-1)
    ids, uniforms = torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 3)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        ops.verify_residual(ids, rows[:, :2].to(dtype), rows.to(dtype), uniforms)
    with pytest.raises(ArgumentError, match="must sum to 1"):
        ops.verify_residual(ids, rows[:, :2].float(), (1.01 * rows).float(), uniforms)


def test_half_precision_sums_are_not_rounded() -> None:
    rows = np.full((1, 1, 32768), 2.0**-15, dtype=np.float16)
    checks_values.check_distributions("op", "rows", rows, [(0, 0)])


def test_different_deterministic_siblings_are_no_draws_from_one_row() -> None:
    for kind in KINDS:
        with pytest.raises(ArgumentError, match="siblings must be equal"):
            call("verify_tree_k_seq", kind, {"draft_probs": None})
        call("verify_tree_k_seq", kind, {"draft_probs": None, "draft_token_ids": [[1, 1]]})
        call("verify_tree_residual", kind, {"draft_probs": None})


def test_siblings_after_the_support_is_used_up() -> None:
    """Without replacement a later sibling may have q = 0: it then came from the uniform rest."""
    changes = {"draft_probs": [[[1.0, 0.0, 0.0]] * 2]}
    call("verify_tree_residual", "numpy", changes, replacement=False)
    with pytest.raises(ArgumentError, match="do not belong to the drafted tokens: token 1"):
        call("verify_tree_residual", "numpy", changes)


def test_arrays_of_one_kind_and_device() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    ids, rows = torch.tensor([[0]]), torch.full((1, 2, 2), 0.5)
    with pytest.raises(KindError, match="num_draft_tokens must be a torch array like draft_token_ids, got a list"):
        ops.verify_greedy(ids, rows, num_draft_tokens=[1])
    with pytest.raises(KindError, match="target_logits must be on cpu like draft_token_ids, got meta"):
        ops.verify_greedy(ids, rows.to("meta"))
    with pytest.raises(KindError, match="uniforms must be a torch array like probs, got a ndarray"):
        ops.sample(rows, np.zeros((1, 2)))


def test_lists_are_numpy_arrays() -> None:
    out = ops.verify_greedy([[2, 1]], [[[0.0, 1, 5], [7, 1, 0], [0, 0, 0]]], num_draft_tokens=[1])
    assert out.output_token_ids.tolist() == [[2, 0, -1]]
    assert ops.verify_greedy([[]], [[[0.0, 1.0]]]).output_token_ids.tolist() == [[1]]
    assert ops.sample([0.25, 0.75], 0.5) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("changes", "emitted"),
    [
        ({"target_probs": [[[NAN] * 3] * 3]}, [-1, -1, -1]),  # nothing to draw from
        ({"target_probs": [[[NAN, 0.5, 0.5], ROW, ROW]]}, [2, -1, -1]),  # a NaN rejects, and has no weight
        ({"draft_probs": [[[NAN] * 3] * 2]}, [1, -1, -1]),  # then the target row itself
        ({"target_probs": [[[2.0, 1.0, 1.0], ROW, ROW]]}, [0, 1, 1]),  # weights of any sum
        ({"uniforms": [[0.5, 0.5, 1.0]]}, [0, 1, 2]),  # the last token with weight
        ({"uniforms": [[NAN, 0.5, 0.5]]}, [1, -1, -1]),
        ({"draft_probs": [[[0.0, 0.5, 0.5], ROW]]}, [0, 1, 1]),  # q = 0 < p is accepted
    ],
)
def test_without_validation(changes: dict, emitted: list[int], kind: str) -> None:
    out = call("verify_residual", kind, changes, validate=False)
    assert out.output_token_ids.tolist() == [emitted]


@pytest.mark.parametrize("op", BY_OP)
def test_torch_cuts_counts_and_ends_rows(op: str) -> None:
    """Ids and counts that nobody checked: the first id outside the vocabulary ends its row's drafts."""
    whole = call(op, "torch", {})
    assert same(call(op, "torch", {"num_draft_tokens": [9]}, validate=False), whole)
    none = call(op, "torch", {"num_draft_tokens": [0]})
    assert same(call(op, "torch", {"num_draft_tokens": [-5]}, validate=False), none)
    for ids in ([[-1, 0]], [[3, 0]]):
        assert same(call(op, "torch", {"draft_token_ids": ids}, validate=False), none)


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("op", CHAINS)
def test_broken_logits_reject(op: str, kind: str, validate: bool) -> None:
    """With a temperature the rows are logits: any finite number will do, and a broken row is no error but gives -1."""
    name = "target_probs"
    logits = [[5.0, -2.0, -INF]] * 3
    for broken in ([NAN, 5.0, 0.0], [INF, 0.0, 0.0], [-INF] * 3):
        for temperature in (0.0, 0.5):
            changes = {name: [logits[0], broken, logits[2]], "temperature": temperature}
            changes = {**changes, name: [changes[name]], "draft_token_ids": [[0, 0]]}
            out = call(op, kind, changes, validate=validate)
            assert out.output_token_ids.tolist() == [[0, -1, -1]], (broken, temperature)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_need_a_temperature(kind: str) -> None:
    logits = {"target_probs": [[[5.0, -2.0, 0.0]] * 3]}
    with pytest.raises(ArgumentError, match="must be finite and 0 or more"):
        call("verify_residual", kind, logits)
    call("verify_residual", kind, {**logits, "temperature": 1.0})


def same(one, other) -> bool:
    return all(a is b or a.tolist() == b.tolist() for a, b in zip(one, other, strict=True))


SAMPLING_ERRORS = [
    (lambda o: o.to_probs(np.zeros(3), temperature=-1.0), ArgumentError, "to_probs: temperature must be .* got -1.0"),
    (lambda o: o.to_probs(np.zeros(3), temperature=INF), ArgumentError, "to_probs: temperature must be a finite"),
    (lambda o: o.to_probs(np.zeros(3), top_k=-1), ArgumentError, "to_probs: top_k must be a whole number, .* got -1"),
    (lambda o: o.to_probs(np.zeros(3), top_p=0.0), ArgumentError, r"to_probs: top_p must be in \(0, 1\], got 0.0"),
    (lambda o: o.to_probs(np.zeros(3), min_p=2.0), ArgumentError, r"to_probs: min_p must be in \[0, 1\], got 2.0"),
    (lambda o: o.to_probs(np.zeros((3, 0))), ArgumentError, r"to_probs: logits must have shape .* got \[3, 0\]"),
    (lambda o: o.to_probs(np.array(0.0)), ArgumentError, r"to_probs: logits must have shape .* got \[\]"),
    (lambda o: o.sample(np.ones((2, 3)), np.zeros(3)), ArgumentError, r"sample: probs .* got \[2, 3\] and \[3\]"),
    (lambda o: o.sample(np.array(1.0), np.zeros(())), ArgumentError, r"sample: probs must have shape .* got \[\]"),
]


@pytest.mark.parametrize("module", [ops, reference], ids=["front door", "reference"])
@pytest.mark.parametrize(("bad", "error", "words"), SAMPLING_ERRORS)
def test_bad_sampling(module, bad, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        bad(module)


def test_sampling_needs_floating_point() -> None:
    with pytest.raises(KindError, match="to_probs: logits must be floating point, got int64"):
        ops.to_probs(np.zeros(3, dtype=np.int64))
    with pytest.raises(KindError, match="sample: probs must be floating point"):
        ops.sample(np.ones(3, dtype=np.int64), np.array(0.5))
