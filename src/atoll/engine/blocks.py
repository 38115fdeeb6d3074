"""The pool of KV blocks: which are free, which requests share, and which keep a prefix that may come again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class BlockPool:
    """Hands out the ids of KV blocks; each block is free, cached or held by one or more requests.

    A block that is full and computed may be given a key (`keep`). Once nobody holds it, it stays cached under that key
    until its place is needed: the least recently used goes first. A block with several holders is only read.

    block_size: tokens in one block. Free blocks are reused last in, first out, while they are warm in the CPU's cache.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"num_blocks {num_blocks} and block_size {block_size} must be positive")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks - 1, -1, -1))
        self._num_holders = [0] * num_blocks
        self._key_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # cached blocks without a holder, least recently used first

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can hand out: the empty ones, and those that are cached but not held."""
        return len(self._free) + len(self._idle)

    @property
    def num_cached(self) -> int:
        """Blocks that can be found by key, held or not."""
        return len(self._key_of)

    def num_needed(self, num_tokens: int) -> int:
        """Blocks that hold this many tokens."""
        return -(-num_tokens // self.block_size)

    def num_sole(self, block_ids: Iterable[int]) -> int:
        """How many of these blocks have one holder only, and would come free if it let go."""
        return sum(self._num_holders[block_id] == 1 for block_id in block_ids)

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks, empty ones first. Raises RuntimeError when there are fewer: look at `num_free` first."""
        if count > self.num_free:
            raise RuntimeError(f"{count} blocks wanted, {self.num_free} free")
        block_ids = [self._free.pop() if self._free else self._evict() for _ in range(count)]
        for block_id in block_ids:
            self._num_holders[block_id] = 1
        return block_ids

    def share(self, keys: Sequence[bytes]) -> list[int]:
        """Hold the blocks of the longest run of keys, from the first on, that is cached; returns their ids."""
        block_ids = []
        for key in keys:
            block_id = self._block_of.get(key)
            if block_id is None:
                break
            self._num_holders[block_id] += 1
            self._idle.pop(block_id, None)
            block_ids.append(block_id)
        return block_ids

    def keep(self, block_id: int, key: bytes) -> None:
        """Cache a held block, now full and computed, under its key; the first block of a key is the one that stays."""
        if self._block_of.setdefault(key, block_id) == block_id:
            self._key_of[block_id] = key

    def release(self, block_ids: Sequence[int]) -> None:
        """Let go of a request's blocks, in their order. Raises RuntimeError for a block that nobody holds."""
        # The end of a prefix is useless without its beginning, so it becomes the older one.
        for block_id in reversed(block_ids):
            if self._num_holders[block_id] == 0:
                raise RuntimeError(f"block {block_id} was released twice")
            self._num_holders[block_id] -= 1
            if self._num_holders[block_id]:
                continue
            if block_id in self._key_of:
                self._idle[block_id] = None
            else:
                self._free.append(block_id)

    def _evict(self) -> int:
        block_id, _ = self._idle.popitem(last=False)
        del self._block_of[self._key_of.pop(block_id)]
        return block_id
