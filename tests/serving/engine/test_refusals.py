"""What a plan is not served with is told before weights are loaded, with the reason."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from engines import expected, options
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform

from zigzag import LayerPlan
from zigzag.reference.errors import ArgumentError, BackendError, PlanError
from zigzag.serving.vllm import hooks, private, refusals
from zigzag.serving.vllm.refusals import check_config

MODEL = expected()["tiny-glm"]["model"]
PLAN = LayerPlan.load(expected()["tiny-glm"]["runs"]["half"]["plan"])


def configured(plan: LayerPlan | None, folder: Path, model: str = MODEL, **more: Any) -> Any:
    path = None
    if plan is not None:
        path = folder / "plan.json"
        plan.save(path)
    return EngineArgs(
        model, **options(None if path is None else str(path), max_model_len=512) | more
    ).create_engine_config()


def test_what_is_served(tmp_path: Path) -> None:
    check_config(configured(PLAN, tmp_path), PLAN)
    assert configured(None, tmp_path).additional_config == {}


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"speculative_config": {"method": "mtp", "num_speculative_tokens": 2}}, "drafts by mtp"),
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype=fp8"),
        ({"disable_hybrid_kv_cache_manager": True}, "hybrid KV cache manager"),
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size=2"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_engines(more: dict[str, Any], told: str, tmp_path: Path) -> None:
    if "pipeline_parallel_size" in more and current_platform.is_cuda() and current_platform.device_count() < 2:
        pytest.skip("vLLM itself refuses two stages on one card")
    with pytest.raises(Exception, match=told) as refused:
        configured(PLAN, tmp_path, **more)
    assert "cannot be served" in str(refused.value)


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        (LayerPlan(("full", "streaming"), 8, 56), "2 layers, the model has 12"),
        (LayerPlan(PLAN.kinds, 8, 56, num_kv_heads=3), "3 KV heads, the model has 4"),
        (LayerPlan(PLAN.kinds, 8, 0), "no recent tokens"),
        (LayerPlan(PLAN.kinds, 8, tuple(range(16, 28))), "windows of their own, .* serve a plan with one window"),
    ],
)
def test_plans(plan: LayerPlan, told: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=told):
        check_config(configured(None, tmp_path), plan)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"plan": "missing.json"}, "missing.json"),
        ({"path": "plan.json"}, "must be"),
        ({"plan": 3}, "must be"),
        ("plan.json", "must be"),
        ({"plan": "heads.json"}, "heads.json"),
    ],
)
def test_what_is_given(given: Any, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("heads.json").write_text(json.dumps({"format": "zigzag-head-plan", "version": 1}), encoding="utf-8")
    with pytest.raises((ArgumentError, PlanError, ValueError), match=told):
        EngineArgs(MODEL, **options(None), additional_config={"zigzag": given}).create_engine_config()


def stand_in() -> Any:
    """What `check_config` reads of a configuration that is served."""
    text = SimpleNamespace(num_hidden_layers=12, layer_types=None)
    kinds = dict.fromkeys(("use_mla", "is_mm_prefix_lm", "is_hybrid", "is_attention_free"), False)
    model = SimpleNamespace(hf_text_config=text, get_total_num_kv_heads=lambda: 4, **kinds)
    parallel = SimpleNamespace(
        pipeline_parallel_size=1, decode_context_parallel_size=1, prefill_context_parallel_size=1
    )
    return SimpleNamespace(
        model_config=model,
        parallel_config=parallel,
        cache_config=SimpleNamespace(cache_dtype="auto"),
        scheduler_config=SimpleNamespace(disable_hybrid_kv_cache_manager=False),
        kv_transfer_config=None,
        speculative_config=None,
    )


OTHERS = [
    ("model_config.use_mla", True, "latent attention"),
    ("model_config.is_mm_prefix_lm", True, "both directions"),
    ("model_config.is_hybrid", True, "keep a state"),
    ("model_config.is_attention_free", True, "keep a state"),
    ("model_config.hf_text_config.layer_types", ["full_attention", "sliding_attention"], "sliding_attention"),
    ("model_config.hf_text_config.layer_types", ["full_attention", "linear_attention"], "linear_attention"),
    ("model_config.hf_text_config.sliding_window", 4096, "sliding windows"),
    ("kv_transfer_config", object(), "KV connector"),
    ("parallel_config.decode_context_parallel_size", 2, "decode_context_parallel_size=2"),
    ("parallel_config.prefill_context_parallel_size", 2, "prefill_context_parallel_size=2"),
    ("speculative_config", SimpleNamespace(method="eagle3"), "drafts by eagle3"),
]


@pytest.mark.parametrize(("name", "value", "told"), OTHERS)
def test_each_reason(name: str, value: Any, told: str) -> None:
    made = part = stand_in()
    check_config(made, PLAN)
    *path, last = name.split(".")
    for step in path:
        part = getattr(part, step)
    setattr(part, last, value)
    with pytest.raises(PlanError, match=told):
        check_config(made, PLAN)


def test_a_window_that_is_not_used_is_none() -> None:
    made = stand_in()
    made.model_config.hf_text_config.sliding_window = 4096
    made.model_config.hf_text_config.use_sliding_window = False
    check_config(made, PLAN)


def platform(kind: str, is_new: bool = True) -> SimpleNamespace:
    known = {f"is_{name}": lambda name=name: name == kind for name in ("cpu", "cuda")}
    return SimpleNamespace(device_type=kind, has_device_capability=lambda least: is_new, **known)


def test_another_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    for here, told in ((platform("tpu"), "not for tpu"), (platform("cuda", False), "compute capability 8.0")):
        monkeypatch.setattr(refusals, "current_platform", here)
        with pytest.raises(PlanError, match=told):
            check_config(stand_in(), PLAN)
    for here in (platform("cpu", False), platform("cuda")):
        monkeypatch.setattr(refusals, "current_platform", here)
        check_config(stand_in(), PLAN)


def test_where_no_plan_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers and caches of vLLM are left alone there, and so is everything of one that is built otherwise."""
    done: list[str] = []
    for name in ("_choose_layers", "_register_caches"):
        monkeypatch.setattr(hooks, name, lambda name=name: done.append(name))
    monkeypatch.setattr(hooks, "_check_configurations", lambda: done.append("configurations"))
    everything = ["configurations", "_choose_layers", "_register_caches"]
    for served, wanted in ((False, everything[:1]), (True, everything)):
        monkeypatch.setattr(hooks, "_installed", False)
        monkeypatch.setattr(hooks, "is_served_here", lambda served=served: served)
        done.clear()
        hooks.install()
        hooks.install()
        assert done == wanted

    def gone() -> None:
        raise ImportError("vllm.config")

    monkeypatch.setattr(hooks, "_installed", False)
    monkeypatch.setattr(hooks, "_check_configurations", gone)
    done.clear()
    hooks.install()
    assert not done


def test_another_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that is gone is one error that names it, where a plan was asked for; else nothing happens."""
    private.check()
    monkeypatch.setitem(private.LEANS_ON, "vllm.config", ("VllmConfig.with_nothing",))
    here = private.vllm_version()
    told = rf"{here} has no vllm\.config\.VllmConfig\.with_nothing.*tested with 0\.32\.0 on CPUs, 0\.26\.0 on CUDA"
    with pytest.raises(Exception, match=told):
        configured(PLAN, tmp_path)
    configured(None, tmp_path)
    monkeypatch.setitem(private.LEANS_ON, "vllm.config.gone", ("anything",))
    monkeypatch.delitem(private.LEANS_ON, "vllm.config")
    assert private.missing() == "vllm.config.gone"
    assert issubclass(BackendError, Exception)
