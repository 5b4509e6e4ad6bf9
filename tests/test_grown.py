"""Trees that grow: by hand, against every path tried, of several rows, and what they refuse."""

import itertools
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from draft_heads import KINDS, random_head  # noqa: E402
from generations import PLANS, near, prompts, target  # noqa: E402

from zigzag import ArgumentError, generate  # noqa: E402
from zigzag.generation.drafting import GrownTree, ModelDrafter, drafter_of  # noqa: E402
from zigzag.generation.drafting.grown import deepest  # noqa: E402
from zigzag.reference.trees import node_depths  # noqa: E402

TREE = GrownTree(nodes=7, depth=3, width=2)


def law(path: tuple[int, ...]) -> Any:
    """Some distribution over 5 tokens after a path."""
    generator = torch.Generator().manual_seed(sum((token + 1) * 7**n for n, token in enumerate(path)))
    return (2 * torch.randn(5, generator=generator, dtype=torch.float64)).log_softmax(-1)


def path_of(tokens: Any, parents: tuple[int, ...], node: int) -> tuple[int, ...]:
    return () if node < 0 else (*path_of(tokens, parents, parents[node]), int(tokens[node]))


def grown(tree: GrownTree, row: int = 0) -> tuple[list[tuple[int, ...]], tuple[int, ...]]:
    """(the path of each node, parents), of a tree over `law`."""

    def below(chosen: list[Any], parents: tuple[int, ...]) -> Any:
        tokens = torch.stack(chosen, dim=1)[0]
        depths = node_depths(parents)
        rows = [law(path_of(tokens, parents, node)) for node in range(len(parents))]
        return torch.stack([r if d == depths[-1] else r * torch.nan for r, d in zip(rows, depths, strict=True)])[None]

    tokens, parents = tree.grow(law(())[None], below)
    return [path_of(tokens[0], parents, node) for node in range(len(parents))], parents


@pytest.mark.parametrize(
    "tree", [TREE, GrownTree(1, 1, 1), GrownTree(60, 4, 5), GrownTree(5, 4, 2), GrownTree(9, 2, 9)]
)
def test_the_likeliest_paths_are_drafted(tree: GrownTree) -> None:
    """Where every node may have every child, the tree is the best of all; where it may not, its nodes' paths are."""
    paths, parents = grown(tree)
    assert len(paths) == len(set(paths)) <= tree.nodes and list(node_depths(parents)) == list(map(len, paths))
    assert list(map(len, paths)) == sorted(map(len, paths)) and max(map(len, paths)) <= tree.depth

    def score(path: tuple[int, ...]) -> float:
        return float(sum(law(path[:n])[token] for n, token in enumerate(path)))

    width, candidates, level = min(tree.width, 5), list[tuple[int, ...]](), [()]
    for _ in range(tree.depth):  # written down anew: children of each of a level's best nodes
        made = [(*path, int(t)) for path in level for t in law(path).argsort(descending=True)[:width]]
        candidates += made
        level = sorted(made, key=score, reverse=True)[: tree.width]
    assert set(paths) == set(sorted(candidates, key=score, reverse=True)[: tree.nodes])
    for one, other in itertools.pairwise(range(len(paths))):
        if parents[one] == parents[other]:
            assert score(paths[one]) >= score(paths[other]), "siblings from the likeliest on"


def test_rows_share_a_tree() -> None:
    """Its shape is that of the mean: one sure row and one that is not."""
    sure = torch.tensor([[9.0, 0.2, 0.1, 0], [1.0, 0.9, 0.8, 0.7]])

    def below(chosen: list[Any], parents: tuple[int, ...]) -> Any:
        return sure[-len(chosen[0]) :, None].expand(-1, len(parents), -1)

    tokens, parents = GrownTree(3, 2, 2).grow(sure, below)
    assert parents == (-1, -1, 0) and tokens.tolist() == [[0, 1, 0]] * 2
    assert GrownTree(2, 2, 2).grow(sure, below)[1] == (-1, 0)
    assert GrownTree(2, 2, 2).grow(sure[1:], below)[1] == (-1, -1)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_plain_decoding(kind: str) -> None:
    model = target()
    for plan in PLANS.values():
        options: dict[str, Any] = {"plan": plan, "temperature": 0, "max_new_tokens": 20}
        drafter = drafter_of(random_head(kind, model), parents=TREE)
        drafted = generate(model, prompts(), drafter=drafter, **options)
        assert drafted.sequences == generate(model, prompts(), **options).sequences


def test_a_drafter_near_its_target_is_accepted_deeper_than_a_chain() -> None:
    model = target()
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": 30}
    per = [
        generate(model, prompts()[:1], drafter=ModelDrafter(near(model), **shape), **options).statistics
        for shape in ({"stop": 3}, {"parents": GrownTree(12, 3, 3)})
    ]
    assert per[1].tokens_per_verification >= per[0].tokens_per_verification > 1


def test_no_wider_than_it_has_nodes() -> None:
    """What is beyond cannot be among them."""
    assert grown(GrownTree(6, 3, 5)) == grown(GrownTree(6, 3, 10**9))
    fed: list[int] = []

    def below(chosen: list[Any], parents: tuple[int, ...]) -> Any:
        fed.append(len(chosen))
        return torch.zeros(1, len(parents), 1000)

    GrownTree(4, 3, 1000).grow(torch.zeros(1, 1000), below)
    assert fed == [4, 8]


def test_what_it_refuses() -> None:
    for wrong in ({"nodes": 0}, {"depth": 1.5}, {"width": True}):
        with pytest.raises(ArgumentError, match="GrownTree"):
            GrownTree(**wrong)
    model = target()
    with pytest.raises(ArgumentError, match="a GrownTree is of the likeliest tokens, leave out siblings='without"):
        ModelDrafter(near(model), parents=TREE, siblings="without replacement")
    with pytest.raises(ArgumentError, match="4 heads draft no 5 tokens in a row"):
        drafter_of(random_head("medusa", model), parents=GrownTree(9, 5, 2))
    assert deepest(TREE) == 3 and deepest([-1, 0, 0, 2]) == 3
