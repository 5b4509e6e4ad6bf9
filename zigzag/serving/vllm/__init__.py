"""A layer plan inside vLLM, out of tree: streaming layers hold sink + recent blocks of its paged cache.

    vllm serve MODEL --additional-config '{"zigzag": {"plan": "plan.json"}}'

vLLM calls `register` in each of its processes (entry point `vllm.general_plugins`). Without that configuration nothing
changes. docs/serving.md says what works, what is refused and why.
"""


def register() -> None:
    """Make vLLM know plans; may be called again."""
    from zigzag.serving.vllm.hooks import install

    install()
