"""Numbers that go from the host to the device and back."""

import os

import pytest
import torch

from zigzag.running.transfers import ToHost, pinned, to_device

ON_GPU = torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1"
NUMBERS = [[3, -1, 2], [0, 5, 7]]


def test_there_and_back() -> None:
    numbers, cpu = torch.tensor(NUMBERS), torch.device("cpu")
    assert pinned(numbers, cpu) is numbers
    assert ToHost(to_device(numbers, cpu)).fetched() == NUMBERS


@pytest.mark.skipif(not ON_GPU, reason="transfers need a GPU, and --device cuda")
def test_nobody_waits() -> None:
    """Behind work of many milliseconds: what is sent after it does not wait, what was sent before it is there."""
    gpu = torch.device("cuda")
    ToHost(to_device(torch.tensor(NUMBERS), gpu)).fetched()  # the first pinned memory waits for the device
    first, busy = ToHost(torch.tensor(NUMBERS, device=gpu)), torch.randn(8192, 8192, device=gpu)
    torch.cuda.synchronize()
    for _ in range(20):
        busy = busy @ busy
    done = torch.cuda.Event()
    done.record()
    sent = to_device(torch.tensor(NUMBERS), gpu)
    later = ToHost(sent + 1)
    assert first.fetched() == NUMBERS and not done.query()
    assert later.fetched() == [[n + 1 for n in row] for row in NUMBERS] and done.query()
