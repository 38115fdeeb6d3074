"""The Triton kernels compile for CUDA down to machine code, which takes no GPU and no interpreter finds out.

Run as a program, this file compiles them; the test does so in a process of its own, where Triton is not interpreted.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

HOPPER = 90
POINTERS = {
    "places": "*i32", "ranks": "*i32", "columns": "*i32", "addresses": "*i64", "scalings": "*fp32", "hidden": "*fp32",
    "block_table": "*i32", "seq_lens": "*i32", "stats": "*fp32", "sums": "*fp32", "scale": "fp32", "softcap": "fp32",
}  # fmt: skip
ACTIVATIONS = ("x", "y", "q", "keys", "values", "out")


def compile_kernel(kernel: Any, **constants: Any) -> None:
    """bfloat16 activations; what is neither a pointer nor a constant is an int32."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    types = dict.fromkeys(ACTIVATIONS, "*bf16") | POINTERS | dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, "i32") for name in kernel.arg_names}
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(name),): x for name, x in constants.items()})
    assert compile(source, target=GPUTarget("cuda", HOPPER, 32)).asm["cubin"]


def main() -> None:
    import triton.language as tl

    from atoll.kernels.triton import attention, lora

    for rows, rank in [(16, 16), (64, 64)]:
        shape = {"WEIGHT": tl.bfloat16, "ROWS": rows, "RANK": rank}
        compile_kernel(lora._shrink, SPLIT=1024, FEATURES=64, **shape)
        compile_kernel(lora._expand, COLUMNS=128, **shape)
    flags = {"HAS_SOFTCAP": True, "HAS_WINDOW": True}
    sizes = {"KEY_DIM": 80, "VALUE_DIM": 80, "GROUP": 4, "BLOCK_SIZE": 16, "PART": 256, "TOKENS": 32, "HEADS": 16}
    compile_kernel(attention._attend, KEYS=128, VALUES=128, **sizes, **flags)
    compile_kernel(attention._combine, VALUE_DIM=80, PART=256, VALUES=128)


def test_they_compile_for_cuda(tmp_path: Path) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    main()
