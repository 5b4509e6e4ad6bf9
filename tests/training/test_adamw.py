"""AdamW beside torch's own, and what a checkpoint of it holds."""

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from zigzag import ModelError  # noqa: E402
from zigzag.training.adamw import AdamW  # noqa: E402


def weights() -> dict[str, Any]:
    return {"one": torch.arange(4.0), "other": torch.ones(2, 2)}


def gradients(step: int) -> dict[str, Any]:
    return {"one": torch.linspace(-3, 2, 4) * step, "other": None if step == 1 else torch.full((2, 2), 0.5)}


def made(moved: dict[str, Any]) -> AdamW:
    return AdamW("op", moved, peak=1.0, weight_decay=0.1, clip=1.0)


def test_steps_are_those_of_torch() -> None:
    """Gradients cut to a norm of 1, all together; the rate of each step; a weight without a gradient stays."""
    moved, wanted = weights(), weights()
    ours, theirs = made(moved), torch.optim.AdamW(wanted.values(), weight_decay=0.1, betas=(0.9, 0.95))
    for step in (1, 2, 3):
        ours.step(0.1 * step, gradients(step))
        theirs.param_groups[0]["lr"] = 0.1 * step
        given = {name: grad for name, grad in gradients(step).items() if grad is not None}
        norm = torch.cat([grad.flatten() for grad in given.values()]).norm()
        for name, weight in wanted.items():
            weight.grad = given[name] / norm if name in given else None
        theirs.step()
        assert bool((moved["other"] == 1).all()) == (step == 1)
    assert all(torch.allclose(moved[name], wanted[name], atol=1e-5) for name in moved)
    assert all(weight.grad is None for weight in moved.values())


@pytest.mark.parametrize("broken_off", [1, 2])
def test_it_goes_on(broken_off: int) -> None:
    """Bit for bit, also where a weight has had no gradient yet."""
    whole, moved = weights(), weights()
    one, other = made(whole), made(moved)
    for step in (1, 2, 3):
        one.step(0.1, gradients(step))
        if step <= broken_off:
            other.step(0.1, gradients(step))
    again = {name: torch.zeros_like(weight) for name, weight in moved.items()}
    resumed = made(again)
    resumed.load({name: tensor.clone() for name, tensor in other.state().items()})
    for step in range(broken_off + 1, 4):
        resumed.step(0.1, gradients(step))
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_tensors_of_something_else() -> None:
    with pytest.raises(ModelError, match=r"op: the checkpoint lacks weights\.other"):
        made(weights()).load({"weights.one": torch.zeros(4)})
