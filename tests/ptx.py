"""What PTX, the text of a compiled kernel, says of its order."""

import re

WAIT = re.compile(r"griddepcontrol\.wait\s*;")
ACCESS = re.compile(r"\b(?:ld|st|atom|red|cp)\.(?!param|const|shared)")


def access_before_waiting(ptx: str) -> list[str]:
    """The kernels that touch memory before they have waited for earlier launches, which may write it, or never wait."""
    early = []
    for text in ptx.split(".entry ")[1:]:
        before, *after = WAIT.split(text, maxsplit=1)
        if not after or ACCESS.search(before) or re.search(r"\bbra\b", before):
            early.append(text.partition("(")[0])
    return early
