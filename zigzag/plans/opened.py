"""Plans where a user gives one: itself, or the file that it was saved as."""

from pathlib import Path
from typing import TypeVar, overload

from zigzag.plans.heads import FORMAT as HEADS
from zigzag.plans.heads import HeadPlan, Plan
from zigzag.plans.layers import LayerPlan
from zigzag.plans.stored import read_json

Given = TypeVar("Given")


def read_plan(path: str | Path) -> Plan:
    """The plan in a file, of layers or of heads; PlanError for a file that holds none."""
    heads = read_json(path).get("format") == HEADS
    return HeadPlan.load(path) if heads else LayerPlan.load(path)


@overload
def opened(plan: str | Path) -> Plan: ...
@overload
def opened(plan: Given) -> Given: ...
def opened(plan: object) -> object:
    """The plan that the file of this name holds; whatever is no name, as a plan or None, itself.

    Raises PlanError for a file that is missing, damaged or holds something else.
    """
    return read_plan(plan) if isinstance(plan, str | Path) else plan


def opened_layers(plan: LayerPlan | str | Path) -> LayerPlan:
    """As `opened`, where only a plan of layers will do."""
    return LayerPlan.load(plan) if isinstance(plan, str | Path) else plan
