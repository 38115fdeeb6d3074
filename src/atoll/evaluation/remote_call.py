"""What a remote contender is asked, and how patiently."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_MESSAGE_TOKENS = 16  # what a chat template writes around one message, at most


@dataclass(frozen=True)
class RemoteCall:
    """What one request asks. prompt: chat messages, or a text to complete.

    num_prompt_tokens: by the base model's tokenizer, for providers that do not say how many they counted.
    """

    key: str
    prompt: tuple[Mapping[str, str], ...] | str
    max_new_tokens: int
    stop: tuple[str, ...]
    num_prompt_tokens: int

    @property
    def max_prompt_tokens(self) -> int:
        """More tokens than any tokenizer makes of the prompt: every token stands for a byte at least."""
        if isinstance(self.prompt, str):
            return len(self.prompt.encode()) + _MESSAGE_TOKENS
        return sum(len(message["content"].encode()) + _MESSAGE_TOKENS for message in self.prompt) + _MESSAGE_TOKENS


@dataclass(frozen=True)
class RetryPolicy:
    """How often and after what time a request is made again."""

    max_attempts: int = 6
    first_delay_s: float = 1.0
    max_delay_s: float = 60.0
    max_retry_after_s: float = 300.0
    timeout_s: float = 180.0

    def delay_s(self, attempt: int, retry_after_s: float | None, draw: float) -> float:
        """The wait after attempt 0, 1, ...: twice as long each time, or what the provider asks for, and no less.

        draw: from 0 to 1, at random, so that requests that failed together do not come back together.
        """
        if retry_after_s is not None:
            return retry_after_s + draw * self.first_delay_s
        return min(self.max_delay_s, self.first_delay_s * 2.0**attempt) * (1 + draw) / 2
