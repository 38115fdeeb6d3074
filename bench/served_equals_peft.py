"""Ask a running server for a mix of all adapters at once, and compare each greedy answer with PEFT's, one by one.

    atoll serve --store STORE --dtype float32 &
    python bench/served_equals_peft.py --store STORE --data-root DATA [--address http://127.0.0.1:3000]

Exits with 1 and prints the differing answers if there are any.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from atoll.adapters.store import AdapterStore, StoredAdapter
from atoll.model.load import load_tokenizer
from atoll.model.source import resolve_base
from atoll.tasks.dataset import load_split
from atoll.tasks.task import find_task
from atoll.text.tokenizer import end_ids

Asked = tuple[StoredAdapter, dict[str, str], int]


def ask(address: str, asked: Asked) -> str:
    adapter, inputs, max_new_tokens = asked
    body = {"inputs": inputs, "parameters": {"adapter_id": adapter.id, "max_new_tokens": max_new_tokens}}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/generate", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=600) as response:
        text: str = json.loads(response.read())["generated_text"]
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--address", default="http://127.0.0.1:3000")
    parser.add_argument("--num-examples", type=int, default=8)
    options = parser.parse_args()

    asked: list[Asked] = []
    adapters = AdapterStore(options.store).list()
    for adapter in adapters:
        contract = adapter.contract
        if contract is None:
            parser.error(f"{adapter.id} was not made by Atoll: it has no prompt template")
        base_name = contract.base.name
        rows = load_split(find_task(contract.task), "test", data_root=options.data_root, limit=options.num_examples)
        for example in rows:
            inputs = {column: example.row[column] for column in contract.input_columns}
            asked.append((adapter, inputs, contract.generation.max_new_tokens))
    with ThreadPoolExecutor(len(asked)) as pool:
        served = list(pool.map(lambda item: ask(options.address, item), asked[::-1]))[::-1]

    if not adapters:
        parser.error(f"there is no adapter in {options.store}")
    folder = resolve_base(base_name).folder
    tokenizer = load_tokenizer(folder)
    num_different = 0
    for adapter in adapters:
        base: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        model = PeftModel.from_pretrained(base, adapter.folder).eval()
        for (other, inputs, max_new_tokens), answer in zip(asked, served, strict=True):
            if other is not adapter or adapter.contract is None:
                continue
            ids = torch.tensor([adapter.contract.renderer(tokenizer).prompt(inputs).ids])
            with torch.no_grad():
                out = model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    eos_token_id=sorted(end_ids(tokenizer)),
                    pad_token_id=0,
                )
            expected = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
            if answer != expected:
                num_different += 1
                print(f"{adapter.id}: {inputs}\n  served: {answer!r}\n  PEFT:   {expected!r}")
    print(f"{len(asked)} answers of {len(adapters)} adapters in one mix, {num_different} differ from PEFT one by one")
    return int(num_different > 0)


if __name__ == "__main__":
    sys.exit(main())
