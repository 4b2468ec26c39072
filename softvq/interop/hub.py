"""The Hugging Face hub: weights are fetched when that is asked for, and never otherwise."""

import re
from pathlib import Path

from softvq.errors import UserError

FILES = ["config.json", "*.safetensors"]  # nothing that would have to be unpickled


def local_directory(name: str | Path, download: bool = False) -> Path:
    """The directory ``name``, or a fetched copy of the hub's repository ORGANISATION/NAME.

    A repository is fetched only with ``download``, into the hub's own cache: the next time, that
    copy serves without a connection too. Raises UserError where there is neither.
    """
    if Path(name).is_dir():
        return Path(name)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(name)):
        raise UserError(f"{name}: no such directory")
    if not download:
        raise UserError(
            f"{name}: no such directory; if it is a repository of the Hugging Face hub, fetch it "
            f"with `softvq import {name} DIRECTORY --download`, or in Python with download=True"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return Path(snapshot_download(str(name), allow_patterns=FILES))
    except RepositoryNotFoundError:
        raise UserError(
            f"{name}: no such repository on the Hugging Face hub, or not one you may read; mend "
            "the name, or log in with `hf auth login`"
        ) from None
    except Exception as error:  # noqa: BLE001 - its HTTP library has errors of its own
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{name}: could not be fetched from the Hugging Face hub ({reason[0]}); mend the "
            "connection, or give a local directory"
        ) from None
