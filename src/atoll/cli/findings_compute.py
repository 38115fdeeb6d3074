"""What `atoll doctor` says of the device that computes, and how fast it will be."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from atoll.cli.findings import GIB, Finding

_DRIVER = Path("/proc/driver/nvidia/version")
_MIN_CAPABILITY = (8, 0)
_BASE_PARAMS = 134.5e6
# Forward and backward without gradients of the base's weights, at the share of a product's speed that passes reach.
_TRAIN_FLOP_PER_PARAM = 4
_EFFICIENCY = 0.5
# docs/LOG.md, 2026-11-21: two cores with AVX512-BF16.
_MEASURED = "2 cores with AVX512-BF16 tune 260 tokens/s, answer one request at 41 tokens/s and 32 at once at 252"


def gpu() -> Finding:
    """CUDA devices, and why there is none although there could be."""
    import torch

    driver = ""
    with suppress(OSError):
        driver = _DRIVER.read_text(encoding="utf-8").partition("\n")[0].removeprefix("NVRM version: ").strip()
    if not torch.cuda.is_available():
        if not driver:
            return Finding("gpu", "ok", "none: everything runs on the processor")
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "for processors only"
        mend = "install the build of torch for this driver: make setup TORCH_INDEX=https://download.pytorch.org/whl/..."
        return Finding("gpu", "warn", f"there is a driver ({driver}), but torch {torch.__version__} is {build}", mend)
    found, is_old = [], False
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        capability = torch.cuda.get_device_capability(index)
        is_old |= capability < _MIN_CAPABILITY
        name = torch.cuda.get_device_name(index)
        found.append(
            f"{name}, {free / GIB:.0f} of {total / GIB:.0f} GiB free, capability {capability[0]}.{capability[1]}"
        )
    text = "; ".join(found) + f" (CUDA {torch.version.cuda}, {driver or 'driver not named'})"
    if is_old:
        return Finding("gpu", "warn", text, "before capability 8.0 bfloat16 is emulated: --dtype float32 is faster")
    return Finding("gpu", "ok", text)


def numbers() -> Finding:
    """What `--dtype auto` chooses here."""
    import torch

    from atoll.model.load import auto_dtype

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = str(auto_dtype(device)).removeprefix("torch.")
    why = "the device computes with it" if name == "bfloat16" else "this processor emulates bfloat16, which is slower"
    return Finding("numbers", "ok", f"--dtype auto is {name}: {why}")


def expectation() -> Finding:
    """How fast tuning the default base will be, from a measurement of this moment."""
    import torch

    from atoll.model.load import auto_dtype
    from atoll.tasks.estimate import measure_speed

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    speed = measure_speed(device, auto_dtype(device))
    tokens = speed * _EFFICIENCY / (_TRAIN_FLOP_PER_PARAM * _BASE_PARAMS)
    text = f"{speed / 1e9:,.0f} GFLOP/s now, so about {_rounded(tokens):,} tokens/s when tuning the default base"
    return Finding("expect", "ok", f"{text}; measured before: {_MEASURED}")


def _rounded(value: float) -> int:
    """Two digits: more would be a promise."""
    return int(float(f"{value:.1e}"))
