"""Base models from the Hugging Face hub: safetensors, configuration and tokenizer, nothing that runs."""

from __future__ import annotations

import functools
import threading
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import constants, get_session, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from atoll.errors import ModelNotFound

_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt"]
# Subfolders hold other formats, "consolidated" the same weights a second time.
_OTHERS = ["*/*", "consolidated*"]
_PATIENCE_S = 3.0


def hub_folder(repo_id: str, revision: str | None, *, show_progress: bool) -> Path:
    """The folder of a hub model in the hub's own cache (HF_HOME), downloaded first when the hub can be reached.

    HF_TOKEN and HF_HUB_OFFLINE are respected. Raises ModelNotFound with the reason.
    """
    offline = constants.is_offline_mode() or not hub_reachable(constants.ENDPOINT)
    had_bars = not are_progress_bars_disabled()
    try:
        if not show_progress:
            disable_progress_bars()
        folder = snapshot_download(
            repo_id, revision=revision, allow_patterns=_FILES, ignore_patterns=_OTHERS, local_files_only=offline
        )
    except (HfHubHTTPError, HTTPError, OSError, ValueError) as error:
        raise _explained(error, repo_id, revision, offline=offline) from error
    finally:
        if had_bars:
            enable_progress_bars()
    return Path(folder)


@functools.cache
def hub_reachable(endpoint: str) -> bool:
    """Whether anything answers at `endpoint` within three seconds; asked once in a process."""
    answered = threading.Event()

    def ask() -> None:
        try:
            get_session().head(endpoint, timeout=_PATIENCE_S)
        except (HTTPError, OSError):
            return
        answered.set()

    # On a thread, because no timeout of a socket covers a name server that does not answer.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PATIENCE_S)
    return answered.is_set()


def _explained(error: Exception, repo_id: str, revision: str | None, *, offline: bool) -> ModelNotFound:
    why, mend = str(error).strip().splitlines()[0], "try again, or give a folder with the model's files"
    if offline:
        why = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else f"{constants.ENDPOINT} cannot be reached"
        why += " and the model is not in the hub's cache"
        mend = "give a folder or a .gguf file, or use the base smollm2-135m-instruct, which needs no hub"
    elif isinstance(error, GatedRepoError):
        why, mend = "its owner asks for consent", f"accept the terms at {constants.ENDPOINT}/{repo_id} and set HF_TOKEN"
    elif isinstance(error, RevisionNotFoundError):
        why, mend = f"it has no revision {revision!r}", "name a branch, a tag or a commit of the model"
    elif isinstance(error, RepositoryNotFoundError):
        why, mend = "no such model, or a private one", "check the spelling; for a private model set HF_TOKEN"
    return ModelNotFound(f"the hub model {repo_id!r} cannot be had", why=why, mend=mend)
