"""Where a model goes and in what dtype: by name or as torch's own, and refused before anything is loaded."""

from typing import TYPE_CHECKING, Any

from zigzag.reference.errors import ArgumentError

if TYPE_CHECKING:
    import torch

EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts")  # names of a count of experts
DTYPES = ("float32", "bfloat16", "float16", "float64")  # what torch's layers compute in


def floating_dtype(op: str, dtype: "str | torch.dtype") -> "torch.dtype":
    """The dtype of this name ("float32", "torch.float32"), or the torch dtype itself.

    Raises ArgumentError for any other than `DTYPES`.
    """
    import torch

    usable = {name: getattr(torch, name) for name in DTYPES}
    for name, made in usable.items():
        if dtype is made or (isinstance(dtype, str) and dtype.removeprefix("torch.") == name):
            found: torch.dtype = made
            return found
    raise ArgumentError(f"{op}: dtype must be one of {', '.join(DTYPES)}, or that dtype of torch, got {dtype!r}")


def usable_device(op: str, device: "str | torch.device") -> "torch.device":
    """The device of this name, or the torch device itself; ArgumentError where there is none such to compute on."""
    import torch

    try:
        made = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ArgumentError(f"{op} must be as torch names it (cpu, cuda, cuda:1), got {device!r}") from error
    if made.type == "cuda" and not torch.cuda.is_available():
        raise ArgumentError(f"{op} {made}: PyTorch finds no CUDA device here; use cpu")
    if made.type == "meta":
        raise ArgumentError(f"{op} {made}: it holds no numbers, so nothing can be computed there; use cpu or cuda")
    try:
        torch.empty(0, device=made)
    except (RuntimeError, AssertionError) as error:  # what the device's own module raises
        raise ArgumentError(f"{op} {made}: PyTorch finds no such device here: {str(error).splitlines()[0]}") from error
    return made


def check_divides(config: Any, tensors: int, experts: int = 1) -> None:
    """ArgumentError, before anything is loaded, for a model that cannot be split so over processes.

    config: of a transformers model; tensors, experts: `tp_size` and `ep_size` of transformers' DistributedConfig
    """
    text = config.get_text_config(decoder=True)
    inner = getattr(text, "moe_intermediate_size", None) if experts == 1 else None
    counted = next((count for name in EXPERTS if (count := getattr(text, name, None)) is not None), None)
    counts = {
        "KV heads": (getattr(text, "num_key_value_heads", None), tensors),
        "heads": (text.num_attention_heads, tensors),
        "rows of an MLP": (getattr(text, "intermediate_size", None), tensors),
        "rows of an expert": (inner, tensors),
        "experts": (counted, experts),
    }
    wrong = [f"{count} {what} over {by}" for what, (count, by) in counts.items() if count is not None and count % by]
    if wrong:
        raise ArgumentError(f"{text.model_type}: what is split over processes must divide, got {', '.join(wrong)}")
