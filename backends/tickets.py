"""Who keeps which tickets: the integers that tell which program of a launch comes last.

Tickets are zero between launches, since the last to come puts its own back, so nothing is set to zero before a launch.
Each stream has its own, and CUDA graphs have one set a device: two graphs with split attention must not be replayed at
the same time.
"""

from collections.abc import Callable, Hashable
from typing import Any

LEAST = 4096  # of a set


class Tickets:
    """The sets of one library's arrays."""

    def __init__(self, zeros: Callable[[int, Any], Any]) -> None:
        """zeros: (count, device) -> so many int32 zeros there"""
        self._zeros = zeros
        self._kept: dict[tuple[Hashable, Hashable], Any] = {}
        self._outgrown: list[Any] = []  # graphs may still use them

    def of(self, device: Hashable, stream: Hashable, capturing: bool, count: int) -> Any:
        """[>= count] int32 zeros, not made anew for every launch."""
        graphs = (device, "graphs")
        if capturing:
            if len(self._kept.get(graphs, ())) >= count:
                return self._kept[graphs]
            return self._zeros(count, device)  # set to zero in every replay
        self._keep(graphs, count)  # a capture cannot make any that outlive it
        return self._keep((device, stream), count)

    def _keep(self, owner: tuple[Hashable, Hashable], count: int) -> Any:
        if len(self._kept.get(owner, ())) < count:
            if owner in self._kept:
                self._outgrown.append(self._kept[owner])
            self._kept[owner] = self._zeros(max(LEAST, count), owner[0])
        return self._kept[owner]
