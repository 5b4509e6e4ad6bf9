"""A plugin of pytest: `pytest --pyargs zigzag.conformance --backend NAME` knows the suite's options. No other run does.

It stands outside the package, so that no other run of pytest imports that.
"""

import pytest

SUITE = "zigzag.conformance"


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str]) -> None:
    """Options must be known before the suite's own files are read."""
    if any(arg == SUITE or arg.startswith((f"{SUITE}.", f"{SUITE}::")) for arg in args):
        early_config.pluginmanager.import_plugin(f"{SUITE}.plugin")
