"""What a model's name may be, found out before anything heavy is imported: a slip costs a second, not a minute."""

from pathlib import Path

from zigzag.files.json_files import read_json
from zigzag.files.near import meant
from zigzag.models import tiny_glm
from zigzag.reference.errors import ModelError

SMOLLM2 = "smollm2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
NAMES = (SMOLLM2, tiny_glm.NAME)
CONFIG = "config.json"
READ = (CONFIG, "generation_config.json", "tokenizer_config.json")  # transformers takes a damaged one for missing
TOKENIZER = ("tokenizer", "tokenization", "vocab", "merges", "spiece", "sentencepiece", "tekken", "bpe", "source")
WAIT = 5.0  # seconds for the hub's answer


def check_source(source: str) -> None:
    """ModelError for a name under which no model is to be had: a slip, a folder that is none, a hub out of reach."""
    path = Path(source)
    if source in NAMES:
        return
    if path.is_dir():
        _check_folder(path)
    elif path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"load_model: no such file: {source}{meant(path, fits=is_model)}")
    elif path.is_file() or path.is_absolute() or source.startswith("."):
        near = meant(path, fits=is_model)
        raise ModelError(f"load_model: a folder, a hub id or a .gguf file is needed, got {source}{near}")
    elif near := meant(source, NAMES, lambda path: False):
        raise ModelError(f"load_model: there is no {source} here{near}")
    else:
        _check_hub(source)


def source_of(name: str | None) -> str:
    """How a model is asked for that scores or a plan name: a name of ours, a hub's, or of a folder lying somewhere."""
    return SMOLLM2 if name in (None, "", SMOLLM2_FILE) else name


def is_model(path: Path) -> bool:
    """Whether a model lies there: a folder with a configuration, or a GGUF file."""
    return path.suffix == ".gguf" or (path / CONFIG).is_file()


def _check_folder(folder: Path) -> None:
    if not (folder / CONFIG).is_file():
        raise ModelError(f"load_model: the folder {folder} holds no {CONFIG}, so it is no model of transformers'")
    for name in READ:
        if (folder / name).exists():
            read_json(folder / name, ModelError)
    if not any(file.name.startswith(TOKENIZER) for file in folder.iterdir()):
        raise ModelError(
            f"load_model: the folder {folder} holds no tokenizer (tokenizer.json or the like); put the model's there: "
            f"tokenizer.save_pretrained({str(folder)!r})"
        )


def _check_hub(source: str) -> None:
    """ModelError where the hub would not give a model of this name, which its own client says after a minute."""
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    what = f"load_model: there is no folder {source}"
    try:
        if isinstance(try_to_load_from_cache(source, "config.json"), str):
            return
        if near := meant(source, fits=is_model):
            raise ModelError(f"{what}{near} A model of the hub is asked for by its whole id, as ORGANISATION/NAME")
        if constants.HF_HUB_OFFLINE:
            raise OfflineModeIsEnabled
        HfApi().model_info(source, timeout=WAIT)
    except ModelError:
        raise
    except HFValidationError as error:
        raise ModelError(f"{what}, and it is no hub id (ORGANISATION/NAME)") from error
    except OfflineModeIsEnabled as error:
        raise ModelError(
            f"{what}, no copy of a hub's model of this name, and HF_HUB_OFFLINE forbids asking the hub; give a folder, "
            f"a .gguf file or one of {', '.join(NAMES)}"
        ) from error
    except GatedRepoError:
        return  # it may be open to this user; transformers says what to do if not
    except RepositoryNotFoundError as error:
        raise ModelError(f"{what}, and the hub has no such model that you may read") from error
    except HfHubHTTPError:
        return  # it answered: transformers says more
    except Exception as error:  # whatever the client's library raises where there is no answer
        raise ModelError(
            f"{what}, and the hub cannot be reached ({type(error).__name__}); give a folder, a .gguf file or one of "
            f"{', '.join(NAMES)}"
        ) from error
