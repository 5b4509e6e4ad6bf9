"""Which store a runner gets: at fixed addresses, for CUDA graphs, or growing, and why."""

import logging
from dataclasses import replace

from zigzag.defaults import SPARE
from zigzag.plans.heads import HeadPlan, Plan
from zigzag.plans.layers import FULL
from zigzag.reference.errors import ArgumentError, ModelError
from zigzag.running.changes import NONE, Changes, check_skip
from zigzag.running.fixed import FixedStore
from zigzag.running.fused_experts import has_eager_experts
from zigzag.running.growing import GrowingStore
from zigzag.running.host import Host
from zigzag.running.model_layers import ModelLayers, check_plan
from zigzag.running.runner import Runner, Store
from zigzag.running.shards import group_of, unlike_tensor_parallelism

log = logging.getLogger("zigzag")


def open_runner(
    host: Host,
    plan: Plan | None,
    *,
    spare: int = SPARE,
    keep_hidden: bool = False,
    capacity: int = 1024,
    changes: Changes = NONE,
) -> Runner:
    """A runner with CUDA graphs over a fixed store where that can be, unless `host.cuda_graphs` is False.

    capacity: tokens of a row that a fixed store has room for at first
    changes: of the model; the plan's windows are those of the layers that are not left out

    Raises ArgumentError if `host.cuda_graphs` is True and it cannot be, PlanError if the plan is for another model,
    ModelError if the model has layers that are neither full nor windowed.
    """
    if host.layers.others:
        kinds = ", ".join(sorted(set(host.layers.others.values())))
        raise ModelError(
            f"generate: {type(host.model).__name__} has layers ({kinds}) whose state no draft and no padding can "
            f"be taken back from; use zigzag.attach(model, plan) and the model's own generate"
        )
    check_plan("generate", plan, host.layers)
    check_skip("generate", changes.skip, host.layers)
    if changes.skip and plan is not None:
        plan = without(plan, changes.skip, host.layers)
    reason = _no_graphs(host, plan)
    if host.cuda_graphs and reason:
        raise ArgumentError(f"generate: cuda_graphs=True cannot be: {reason}; leave it out")
    store: Store
    if host.cuda_graphs is False or reason or isinstance(plan, HeadPlan):
        store = GrowingStore(plan, host.layers, host.device, spare=spare)
    else:
        must = host.cuda_graphs is True
        group = group_of(host.model)
        store = FixedStore(plan, host.layers, host.device, spare=spare, capacity=capacity, must=must, group=group)
    if reason and host.cuda_graphs is None and host.model.device.type == "cuda":
        log.info("no CUDA graphs: %s", reason)
    return Runner(host, store, keep_hidden=keep_hidden, changes=changes)


def without(plan: Plan, skip: frozenset[int], layers: ModelLayers) -> Plan:
    """The plan where layers that are left out, and hold nothing, count as full: nothing is moved for them."""
    if isinstance(plan, HeadPlan):
        raise ArgumentError("generate: layers are left out under a LayerPlan or none; a HeadPlan splits them")
    kinds = [FULL if index in skip else kind for index, kind in zip(layers.full, plan.kinds, strict=True)]
    return replace(plan, kinds=tuple(kinds))


def _no_graphs(host: Host, plan: Plan | None) -> str:
    """Why steps of this model cannot be CUDA graphs; empty if they can."""
    model = host.model
    devices = {weight.device for weight in model.parameters()}
    if model.device.type != "cuda":
        return f"the model is on {model.device}, not on a CUDA device"
    if len(devices) > 1:
        return f"the model is spread over {len(devices)} devices"
    if reason := unlike_tensor_parallelism(model):
        return reason
    if isinstance(plan, HeadPlan):
        return "a HeadPlan splits layers"
    if host.layers.is_latent:
        return "its cache holds latents, of which every step would make the keys of all slots"
    if has_eager_experts(model):
        return "its experts run one by one, by what the device says (set_experts_implementation('grouped_mm'))"
    return ""
