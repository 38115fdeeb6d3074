"""The pool of KV blocks: which of them are free."""

from __future__ import annotations

from collections.abc import Iterable


class BlockPool:
    """Hands out the ids of KV blocks; each id is either free or owned by exactly one request.

    block_size: tokens in one block. Blocks are reused last in, first out, while they are warm in the cache.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"num_blocks {num_blocks} and block_size {block_size} must be positive")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks - 1, -1, -1))
        self._is_free = bytearray(b"\1" * num_blocks)

    @property
    def num_free(self) -> int:
        return len(self._free)

    def num_needed(self, num_tokens: int) -> int:
        """Blocks that hold this many tokens."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks. Raises RuntimeError when there are fewer: the caller looks at `num_free` first."""
        if count > len(self._free):
            raise RuntimeError(f"{count} blocks wanted, {len(self._free)} free")
        block_ids = [self._free.pop() for _ in range(count)]
        for block_id in block_ids:
            self._is_free[block_id] = 0
        return block_ids

    def release(self, block_ids: Iterable[int]) -> None:
        """Give blocks back. Raises RuntimeError for a block that is free already: two requests would share it."""
        for block_id in block_ids:
            if self._is_free[block_id]:
                raise RuntimeError(f"block {block_id} was released twice")
            self._is_free[block_id] = 1
            self._free.append(block_id)
