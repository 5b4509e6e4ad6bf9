"""A CUDA graph's stand-in on the CPU: it computes anew what was captured, from its own buffers into its own output."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._pytree import tree_map

from zigzag.generation import verdict
from zigzag.running import graphs, opening
from zigzag.running.fixed import FixedStore
from zigzag.running.host import Host
from zigzag.running.runner import Runner


class FakeStep:
    """As `zigzag.running.graphs.Step`. Capturing computes nothing; `given` begins as zeros, as there."""

    def __init__(self, work: Any, device: torch.device, given: tuple[Any, ...]) -> None:
        self.work, self.output, self.replays = work, None, 0
        self.given = tuple(None if each is None else torch.zeros_like(each) for each in given)
        self.graph = SimpleNamespace(replay=self.replay)

    def replay(self) -> None:
        self.replays += 1
        new = self.work(*self.given)
        if self.output is None:
            self.output = tree_map(lambda t: t.clone() if isinstance(t, torch.Tensor) else t, new)
        else:
            tree_map(lambda old, t: old.copy_(t) if isinstance(t, torch.Tensor) else t, self.output, new)


def replay_on_cpu(monkeypatch: Any) -> list[FakeStep]:
    """From here on models on the CPU run as on a GPU: caches at fixed addresses, steps replayed; the captured ones."""
    found: list[FakeStep] = []

    def capture(*given: Any) -> FakeStep:
        found.append(FakeStep(*given))
        return found[-1]

    monkeypatch.setattr(graphs, "_captured", capture)
    monkeypatch.setattr(opening, "_no_graphs", lambda *_: "")
    monkeypatch.setattr(Host, "may_capture", property(lambda host: host.cuda_graphs is not False))
    return found


def fixed_on_cpu(monkeypatch: Any) -> None:
    """Caches at fixed addresses, as on a GPU; the steps run as they are."""
    monkeypatch.setattr(opening, "_no_graphs", lambda *given: "")
    monkeypatch.setattr(opening, "FixedStore", partial(FixedStore, graphs=False))


def order_of(monkeypatch: Any) -> list[str]:
    """What comes after what from here on: "fed" and "read"."""
    found: list[str] = []
    feed, fetched = Runner.feed, verdict.Pending.fetched
    monkeypatch.setattr(Runner, "feed", lambda *given, **options: (found.append("fed"), feed(*given, **options))[1])
    monkeypatch.setattr(verdict.Pending, "fetched", lambda self: (found.append("read"), fetched(self))[1])
    return found
