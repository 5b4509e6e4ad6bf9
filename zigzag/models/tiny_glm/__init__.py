"""Where the weights of tiny-glm ship: the model folder of a run of `zigzag.training`, its card as README.md."""

from pathlib import Path

from zigzag.reference.errors import ModelError

NAME = "tiny-glm"


def folder() -> Path:
    """The model's folder, for `zigzag.load`; ModelError where this installation has no weights."""
    path = Path(__file__).parent
    if not (path / "config.json").is_file():
        raise ModelError(
            f"{NAME}: this installation holds no weights of it; train it (python -m zigzag.cli.train tiny-glm --device "
            f"cuda --out FOLDER) and give FOLDER/model"
        )
    return path
