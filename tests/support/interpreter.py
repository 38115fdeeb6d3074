"""Where Triton kernels run in tests: on the GPU, or in Triton's interpreter (tests/conftest.py chooses it).

Triton's interpreter holds bfloat16 as uint16 and multiplies matrices of them as integers; here they are widened first.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
IS_INTERPRETED: bool = triton.knobs.runtime.interpret

_create_dot = InterpreterBuilder.create_dot


def _widened_dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
    a, b = (self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
    return _create_dot(self, a, b, *others)


InterpreterBuilder.create_dot = _widened_dot
