"""What adapters cost in the linear layers of one block of SmolLM2-135M: time against the bare base model.

make bench-layer      or      .venv/bin/python bench/layer.py --device cuda --dtype bfloat16
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn

from atoll.adapters.bank import AdapterBank
from atoll.adapters.routing import BASE_SLOT, Routing
from atoll.config.fleet import LoraConfig
from common import best_seconds

# The linear layers of a block: name -> (in_features, out_features).
SHAPES = {
    "q_proj": (576, 576),
    "k_proj": (576, 192),
    "v_proj": (576, 192),
    "o_proj": (576, 576),
    "gate_proj": (576, 1536),
    "up_proj": (576, 1536),
    "down_proj": (1536, 576),
}
NUM_ROWS = (32, 512)
NUM_ADAPTERS = (1, 4, 16, 32)
RANK = 16
SECONDS_EACH = 1.0
QUICK_SECONDS = 0.05


class Block(nn.ModuleDict):
    """The linear layers alone, each fed with an input of its own."""

    def __init__(self) -> None:
        super().__init__({name: nn.Linear(*shape, bias=False) for name, shape in SHAPES.items()})

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return torch.stack([self[name](x).sum() for name, x in inputs.items()]).sum()


def milliseconds(run: Callable[[], object], device: torch.device, seconds: float) -> float:
    """The shortest of several runs in about `seconds`."""

    def finished() -> None:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return 1000 * best_seconds(finished, seconds)


def measure(num_rows: int, device: torch.device, dtype: torch.dtype, seconds: float) -> None:
    """Print one line for each number of adapters that share the rows evenly, the base model first."""
    torch.manual_seed(0)
    block = Block().to(device, dtype).requires_grad_(False)
    bank = AdapterBank(block, num_slots=max(NUM_ADAPTERS), max_rank=RANK)
    for slot in range(bank.num_slots):
        bank.create(slot, LoraConfig(r=RANK), seed=slot)
    inputs = {name: torch.randn(num_rows, shape[0], device=device, dtype=dtype) for name, shape in SHAPES.items()}
    trained = {name: x.clone().requires_grad_() for name, x in inputs.items()}

    base_ms = 0.0
    for num_adapters in (0, *NUM_ADAPTERS):
        slots = [row * num_adapters // num_rows if num_adapters else BASE_SLOT for row in range(num_rows)]
        routing = Routing.from_slots(slots)

        def forward(routing: Routing = routing) -> None:
            with torch.inference_mode(), bank.routed(routing):
                block(inputs)

        def train(routing: Routing = routing) -> None:
            with bank.routed(routing):
                block(trained).backward()

        forward_ms, train_ms = milliseconds(forward, device, seconds), milliseconds(train, device, seconds)
        base_ms = base_ms or forward_ms
        name = f"{num_adapters} adapters" if num_adapters else "base model"
        print(f"{num_rows:6} rows  {name:12} {forward_ms:9.2f} ms {forward_ms / base_ms:6.2f} x {train_ms:10.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--quick", action="store_true", help="some seconds that show that the bench works, no figures")
    arguments = parser.parse_args()
    print(f"one block of SmolLM2-135M, rank {RANK}, {arguments.device}, {arguments.dtype}, torch {torch.__version__}")
    print(f"{'':25} {'forward':>10} {'to base':>10} {'forward and backward':>22}")
    for num_rows in NUM_ROWS:
        seconds = QUICK_SECONDS if arguments.quick else SECONDS_EACH
        measure(num_rows, torch.device(arguments.device), getattr(torch, arguments.dtype), seconds)


if __name__ == "__main__":
    main()
