"""The names of KV blocks by content, so that a request finds what another one has computed."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Sequence


def root_key(tenant: str, adapter_digest: str | None) -> bytes:
    """The key before a request's first block; adapter_digest None is the bare base model.

    The tenant is part of it, so that nobody learns from the time to a first token what others have asked.
    """
    return hashlib.sha256(json.dumps([tenant, adapter_digest]).encode()).digest()


def extend_keys(keys: list[bytes], token_ids: Sequence[int], *, block_size: int, num_blocks: int) -> None:
    """Append to `keys`, which begins with the root key, the keys of the blocks up to `num_blocks`.

    A key is the sha256 of the key before it and the block's tokens: it stands for all that the block's keys and values
    depend on. Equal keys of different contents are out of reach even for somebody who searches for them.
    """
    for index in range(len(keys) - 1, num_blocks):
        tokens = array("q", token_ids[index * block_size : (index + 1) * block_size])
        keys.append(hashlib.sha256(keys[-1] + tokens.tobytes()).digest())
