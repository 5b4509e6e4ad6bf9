"""Several processes that run one model: they are given the same, and none waits for one that failed.

A sum over processes that one of them never joins waits for ever, and a captured one is seen by no timeout of torch. So
what must be agreed on is told through the store by which the processes found each other, not by sums; and a thread in
each process watches whether the others live and have failed, and ends the group for those that wait in a sum.
"""

import atexit
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from threading import Event, Thread
from typing import Any

import torch

from zigzag.reference.errors import ProcessError
from zigzag.running.shards import Group, group_of

BEAT, DEAD = 1.0, 20.0  # seconds between signs of life, and without one until a process counts as dead
PATIENCE = 40.0  # until gloo gives up a sum that somebody does not join: it cannot be ended from elsewhere
GRACE, STUCK = 3.0, 45.0  # until NCCL's group is ended for those that wait, and until their process is
OF_THE_GROUP = ("gloo", "nccl", "peer", "socket", "distributed", "communicator")  # in errors of a broken sum
_known: dict[tuple[int, ...], "Processes"] = {}


def processes_of(model: Any) -> "Processes | None":
    """The processes over which a model is spread; None for a model that one process has."""
    group = group_of(model)
    if group is None:
        return None
    ranks = tuple(torch.distributed.get_process_group_ranks(group))
    if ranks not in _known:
        _known[ranks] = Processes(group, ranks)
    _known[ranks].meets_in(group)
    return _known[ranks]


class Processes:
    """This process among those that run a model with it; `call` is one call that all of them make.

    rank: of this process in the group, which is how errors name processes
    """

    def __init__(self, group: Group, ranks: tuple[int, ...], store: Any = None) -> None:
        self.group: Group | None = None
        self.size = len(ranks)
        self.rank = ranks.index(torch.distributed.get_rank()) if store is None else ranks[0]
        if store is None:
            default = torch.distributed.distributed_c10d._get_default_store()
            store = torch.distributed.distributed_c10d.PrefixStore(f"zigzag/{'-'.join(map(str, ranks))}", default)
        self.store = store
        self._call = self._told = 0
        self._failure = ""  # of another process, in this call
        self._ended = ""  # why sums over the group cannot be had any more
        self._inside = False
        self._beats: dict[int, tuple[bytes, float]] = {}  # of the others: the last sign of life, and when it came
        self._watch: Thread | None = None
        self._stop = Event()
        self.meets_in(group)

    def meets_in(self, group: Group) -> None:
        """Sums of the next call are over this group: models of the same processes may have one each."""
        if group is not self.group:
            self.group, self._ended = group, ""
            _let_gloo_give_up(group)

    @contextmanager
    def call(self) -> Iterator[None]:
        """What fails within the block in one process raises in all: there as it is, elsewhere a ProcessError."""
        if self._inside:
            yield
            return
        self._begin()
        try:
            if self._ended:
                raise ProcessError(f"generate: {self._ended}; the processes must be started anew")
            yield
        except BaseException as error:
            failure = self._failure or (self._blamed() if _is_of_the_group(error) else "")
            if failure:
                raise ProcessError(f"generate: {failure}") from error
            self._tell(error)
            raise
        finally:
            self._inside = False

    def check(self) -> None:
        """ProcessError if another process has failed; asks nobody."""
        if self._failure:
            raise ProcessError(f"generate: {self._failure}")

    def gathered(self, mine: str) -> list[str]:
        """What each process gives here, in the order of ranks; ProcessError if one has failed or died meanwhile."""
        self._told += 1
        place = f"{self._call}/{self._told}"
        self.store.set(f"{place}/{self.rank}", mine)
        others = [f"{place}/{rank}" for rank in range(self.size)]
        while not self.store.check(others):
            self._failure = self._failure or self._told_failure()
            self.check()
            time.sleep(0.001)
        found = [self.store.get(each).decode() for each in others]
        if self._told > 1:  # everybody has come here, so has read what was before
            self.store.delete_key(f"{self._call}/{self._told - 1}/{self.rank}")
        return found

    def agree(self, given: Mapping[str, object]) -> None:
        """ProcessError, in every process, unless all were given the same; it names who and what."""
        mine = {name: _digest(value) for name, value in given.items()}
        first, *others = map(json.loads, self.gathered(json.dumps(mine)))
        said = []
        for rank, found in enumerate(others, start=1):
            if names := [name for name in mine if first.get(name) != found.get(name)]:
                said.append(f"rank {rank} another {', '.join(names)}")
        if said:
            raise ProcessError(
                f"generate: all processes must be given the same, got {' and '.join(said)} than rank 0; "
                f"nothing was computed"
            )

    def _begin(self) -> None:
        self._inside, self._failure = True, ""
        self._call, self._told = self._call + 1, 0
        if self._watch is None:
            atexit.register(self._stop.set)
            self._watch = Thread(target=self._watched, name="zigzag-processes", daemon=True)
            self._watch.start()

    def _tell(self, error: BaseException) -> None:
        what = f"rank {self.rank} failed: {type(error).__name__}: {str(error)[:500]}"
        with suppress(RuntimeError):  # nobody is there to be told
            self.store.set(f"failed/{self._call}/{self.rank}", what)

    def _told_failure(self) -> str:
        """What another process has told of this call."""
        for rank in range(self.size):
            key = f"failed/{self._call}/{rank}"
            if rank != self.rank and self.store.check([key]):
                return str(self.store.get(key).decode())
        return ""

    def _blamed(self) -> str:
        """Why a sum broke: which process told that it failed, or gave no sign of life; empty if all live on."""
        end = time.monotonic() + DEAD + 3 * BEAT
        while time.monotonic() < end:
            try:
                found = self._failure or self._told_failure() or self._dead()
            except RuntimeError:
                return "rank 0, or who started the processes, is gone"
            if found:
                return found
            time.sleep(0.1)
        return ""

    def _dead(self) -> str:
        """Which process has given no sign of life for so long."""
        now = time.monotonic()
        for rank in range(self.size):
            key = f"beat/{rank}"
            if rank == self.rank or not self.store.check([key]):
                continue
            beat = self.store.get(key)
            if rank not in self._beats or self._beats[rank][0] != beat:
                self._beats[rank] = beat, now
            elif now - self._beats[rank][1] > DEAD:
                return f"rank {rank} died: no sign of life for {DEAD:.0f} s"
        return ""

    def _watched(self) -> None:
        """The thread: signs of life, and those of the others."""
        number, since = 0, 0.0
        while not self._stop.wait(BEAT):
            number, call = number + 1, self._call
            try:
                self.store.set(f"beat/{self.rank}", str(number))
                found = self._dead() or self._told_failure()
            except RuntimeError as error:
                if not self._inside:  # nobody is left to live for; a call that comes begins anew
                    self._watch = None
                    return
                found = f"rank 0, or who started the processes, is gone ({str(error).splitlines()[0][:100]})"
            if not found or not self._inside or call != self._call:
                since = 0.0
                continue
            self._failure = self._failure or found
            since = since or time.monotonic()
            self._free(time.monotonic() - since)

    def _free(self, waited: float) -> None:
        """Ends the group for a call that waits for a failed process; the process itself if even that does not help."""
        if waited > GRACE and not self._ended:
            self._ended = self._failure
            Thread(target=_abort, args=(self.group,), daemon=True).start()  # it may wait for what it ends
        if waited > GRACE + STUCK:
            print(f"zigzag: rank {self.rank} ends, since {self._failure}", file=sys.stderr, flush=True)
            os._exit(1)


def _let_gloo_give_up(group: Group) -> None:
    """A sum over gloo that somebody does not join raises after `PATIENCE`, not after half an hour."""
    if group is not None and "gloo" in torch.distributed.get_backend(group):
        torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=PATIENCE), group)


def _abort(group: Group) -> None:
    for kind in ("cuda", "cpu"):
        try:
            group._get_backend(torch.device(kind)).abort()
        except (RuntimeError, AttributeError, NotImplementedError):  # no backend for this kind, or it cannot
            continue


def _is_of_the_group(error: BaseException) -> bool:
    """Whether this is what a sum raises where another process is gone."""
    if isinstance(error, ProcessError) or not isinstance(error, RuntimeError):
        return False
    words = f"{type(error).__name__} {error}".lower()
    return any(word in words for word in OF_THE_GROUP)


def _digest(value: object) -> str:
    return hashlib.sha256(described(value).encode()).hexdigest()[:16]


def described(value: object, depth: int = 3) -> str:
    """The value in words that are the same in every process: no addresses, no tensors' numbers."""
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{','.join(described(each, depth) for each in value)}]"
    if isinstance(value, (set, frozenset)):
        return f"{{{','.join(sorted(described(each, depth) for each in value))}}}"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key!s}:{described(each, depth)}' for key, each in value.items())}}}"
    name = type(value).__name__
    if depth == 0 or callable(value) or isinstance(value, (torch.nn.Module, torch.Tensor)):
        return name
    own = vars(value) if hasattr(value, "__dict__") else {}
    public = {key: each for key, each in own.items() if not key.startswith("_") and _is_plain(each)}
    return f"{name}{described(public, depth - 1)}"


def _is_plain(value: object) -> bool:
    """Whether this is a setting, not what a run leaves behind."""
    return isinstance(value, (bool, int, float, str, tuple, frozenset)) or value is None
