"""How much of the free memory the KV cache and the adapters' slots take where nobody says it."""

from __future__ import annotations

import torch

from atoll.adapters.bank import slot_bytes
from atoll.errors import ConfigError
from atoll.kernels.kv import block_bytes
from atoll.memory import main_memory
from atoll.model.load import BaseModel

# Shares of what is free. What is left over holds activations and, on a CPU, adapters beyond the slots (adapters.tiers)
# and everybody else's programs.
CUDA_KV_SHARE = 0.6
CPU_KV_SHARE = 0.3
SLOTS_SHARE = 0.2


def choose_num_blocks(
    base: BaseModel, *, block_size: int, max_num_requests: int, max_length: int, kv_cache_bytes: int | None
) -> int:
    """How many KV blocks to allocate: what `kv_cache_bytes` holds, or else a share of the free memory.

    Without `kv_cache_bytes` never more than all requests at full length could fill. Raises ConfigError if not even one
    block fits.
    """
    bytes_per_block = block_bytes(base.kv_shapes, block_size=block_size, dtype=base.dtype)
    if kv_cache_bytes is not None:
        num_blocks = kv_cache_bytes // bytes_per_block
    else:
        share = CUDA_KV_SHARE if base.device.type == "cuda" else CPU_KV_SHARE
        num_blocks = int(_free_bytes(base.device) * share) // bytes_per_block
        num_blocks = min(num_blocks, max_num_requests * -(-max_length // block_size))
    if num_blocks < 1:
        raise ConfigError(
            "the KV cache has no room for a single block",
            where="kv_cache_bytes",
            why=f"one block of {block_size} tokens takes {bytes_per_block} bytes",
            mend=f"give it at least {bytes_per_block * -(-max_length // block_size)} bytes, one request of full length",
        )
    return num_blocks


def choose_num_slots(base: BaseModel, *, max_rank: int, max_num_requests: int) -> int:
    """How many adapters to hold on the device: one for each request that can run, if a share of the memory has room.

    At least one. The base model must not have a bank of adapters yet.
    """
    room = int(_free_bytes(base.device) * SLOTS_SHARE)
    return max(1, min(max_num_requests, room // slot_bytes(base.model, max_rank=max_rank, dtype=base.dtype)))


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return main_memory().available
