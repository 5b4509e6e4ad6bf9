"""Synthetic tasks whose answer lies far back, by name. Made here, after RULER's kinds (arXiv 2404.06654)."""

from zigzag.measuring.tasks.copying import Copying
from zigzag.measuring.tasks.needles import MultiKey, MultiQuery, MultiValue, Passkeys
from zigzag.measuring.tasks.task import Task
from zigzag.measuring.tasks.tracking import VariableTracking
from zigzag.measuring.tasks.words import CommonWords, FrequentWords

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Passkeys(),
        MultiKey(),
        MultiValue(),
        MultiQuery(),
        VariableTracking(),
        CommonWords(),
        FrequentWords(),
        Copying(),
    )
}

__all__ = ["TASKS", "Task"]
