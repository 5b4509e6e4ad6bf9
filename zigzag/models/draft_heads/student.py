"""A small draft model over the target's own embedding and head, to be distilled from it."""

from typing import Any

from zigzag.models.state_head import begin_as, check_main, one_layer
from zigzag.reference.checks import check_count


def make_student(main: Any, layers: int) -> Any:
    """A model of the target's class with `layers` dense layers between the target's own embedding and head.

    Its layers and its norm begin as the target's, taken evenly from its first to its last, where shapes are equal.
    DistillSpec (arXiv 2310.08461) begins with a small model of the family; this is for where there is none.
    """
    check_main("make_student", main)
    config = one_layer(main.config)
    config.num_hidden_layers = check_count("make_student", "layers", layers)
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = ["full_attention"] * layers
    if hasattr(config, "first_k_dense_replace"):
        config.first_k_dense_replace = layers
    plain = main.get_base_model() if hasattr(main, "get_base_model") else main  # beneath adapters
    student = type(plain)(config).to(main.device, main.dtype)
    own, decoder = student.get_decoder(), main.get_decoder()
    own.embed_tokens, own.rotary_emb, student.lm_head = decoder.embed_tokens, decoder.rotary_emb, main.lm_head
    own.norm.load_state_dict(decoder.norm.state_dict())
    last = len(decoder.layers) - 1
    for index, layer in enumerate(own.layers):
        begin_as(layer, decoder.layers[round(index * last / max(1, layers - 1))])
    return student.eval()
