"""Where the commands of the documentation are run: a folder like a clone with some files of one's own, and a shell."""

from __future__ import annotations

import csv
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

from atoll.adapters.contract import BaseRef
from atoll.adapters.store import AdapterStore
from atoll.model.source import DEFAULT_BASE
from atoll.model.wheel import GGUF_SHA256
from support.adapters import save_random_adapter
from support.console import Block
from support.hub_uploads import upload_hub
from support.hubs import TOKEN
from support.pages import save_task_adapter
from support.providers import fake_provider
from support.tiny import make_model, save_tiny_base

ROOT = Path(__file__).parents[2]
ADAPTERS = {"sentiment": "glue_sst2", "support": "support"}
"""What the newcomer's store holds already, and the task of each."""
LUDWIG = """\
model_type: llm
base_model: BASE
input_features: [{name: message, type: text}]
output_features: [{name: team, type: text}]
prompt: {template: "Message: {message} Team:"}
adapter: {type: lora}
trainer: {type: finetune, epochs: 1, batch_size: 4, learning_rate: 0.001}
"""
SHIM = """\
#!/usr/bin/env bash
# A server goes into the background and is waited for; a second one takes the place of the first. Watching ends at once.
set -euo pipefail
if [ "${1-}" = ps ]; then exec "$REAL_ATOLL" "${@/--watch/--url=$ATOLL_URL}"; fi
if [ "${1-}" != serve ]; then exec "$REAL_ATOLL" "$@"; fi
stop-server
"$REAL_ATOLL" "$@" --port "${ATOLL_URL##*:}" >"$HOME/server.log" 2>&1 &
echo $! >"$HOME/server.pid"
until "$REAL_CURL" -sf "$ATOLL_URL/health/ready" >"$HOME/ready"; do
  kill -0 $! || { cat "$HOME/server.log" >&2; exit 1; }
  sleep 0.1
done
"""
CURL = """\
#!/usr/bin/env bash
exec "$REAL_CURL" --fail-with-body --silent --show-error "$@"
"""
STOP = """\
#!/usr/bin/env bash
if [ -f "$HOME/server.pid" ]; then
  kill "$(cat "$HOME/server.pid")" && tail --pid="$(cat "$HOME/server.pid")" -f /dev/null
  rm "$HOME/server.pid"
fi
"""


@dataclass(frozen=True)
class Newcomer:
    """Somebody with a folder and a shell; the default base is a tiny one, hub and OpenAI are on this machine."""

    folder: Path
    environment: dict[str, str]

    def follows(self, blocks: Sequence[Block]) -> subprocess.CompletedProcess[str]:
        """Do what the blocks say, one after the other, in one shell, until something fails."""
        script = "\n".join(self._as_shell(block) for block in blocks)
        # What a page takes for granted.
        if "fleet.yaml" in script.partition("atoll init")[0]:
            script = f"atoll init train.csv\natoll tune fleet.yaml\n{script}"
        if self.environment["ATOLL_URL"][7:] in script.partition("atoll serve")[0]:
            script = f"atoll serve --adapter-root .\n{script}"
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f"trap 'echo \"failed: $BASH_COMMAND\" >&2' ERR\n{script}"],
            cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=1200, check=False,
        )  # fmt: skip

    def _as_shell(self, block: Block) -> str:
        port = self.environment["ATOLL_URL"].rpartition(":")[2]
        code = block.code.replace("localhost", "127.0.0.1").replace("http://server:", "http://127.0.0.1:")
        code = re.sub(r"--limit \d+", "--limit 3", code.replace(":3000", f":{port}"))  # few answers are enough
        return code if block.language == "console" else f"python - <<'PYTHON'\n{code}PYTHON\n"


@contextmanager
def newcomer(folder: Path, data_root: Path | None = None) -> Iterator[Newcomer]:
    """Lay out the folder; at the end no server is left. data_root: what `DATA` in a command stands for."""
    home = folder / "home"
    home.mkdir()
    tools = _write_tools(folder / "bin")
    base = save_tiny_base(
        folder / "cache" / "models" / f"{DEFAULT_BASE}-{GGUF_SHA256[:12]}", max_position_embeddings=8192
    )
    _publish(folder, base)
    _write_files(folder / "here", base)
    if data_root is not None:
        (folder / "here" / "DATA").symlink_to(data_root)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with upload_hub() as hub, fake_provider() as provider:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("ATOLL_", "HF_", "AWS_"))},
            "HOME": str(home),
            "PATH": f"{tools}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "REAL_CURL": shutil.which("curl") or "curl",
            "REAL_ATOLL": str(Path(sys.executable).parent / "atoll"),
            "ATOLL_URL": f"http://127.0.0.1:{port}",
            "ATOLL_STORE": str(folder / "store"),
            "ATOLL_CACHE": str(folder / "cache"),
            "ATOLL_DATABASE": str(home / "atoll.db"),
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "OPENAI_BASE_URL": provider.url,
            "OPENAI_API_KEY": "none",
        }
        try:
            yield Newcomer(folder / "here", environment)
        finally:
            subprocess.run([tools / "stop-server"], env=environment, check=False)


def _write_tools(folder: Path) -> Path:
    folder.mkdir()
    for name, text in {"atoll": SHIM, "curl": CURL, "stop-server": STOP}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def _publish(folder: Path, base: Path) -> None:
    store = AdapterStore(folder / "store")
    ref = BaseRef(name=DEFAULT_BASE, digest=f"sha256:{GGUF_SHA256}")
    for seed, (name, task) in enumerate(ADAPTERS.items()):
        store.publish(name, save_task_adapter(folder / "adapters" / name, base, task, seed=seed, base=ref))


def _write_files(folder: Path, base: Path) -> None:
    """Examples with few rows, and files of the newcomer's own under the names that the pages use."""
    shutil.copytree(ROOT / "examples", folder / "examples")
    yaml = YAML()
    for path in folder.glob("examples/**/*.yaml"):
        fleet = yaml.load(path)
        if "adapters" in fleet:
            fleet["data"] = {"limit": 6, "validation_limit": 2, "max_length": 4096}
            fleet["trainer"] = {"epochs": 1}
            for member in fleet["adapters"].values():
                member.pop("data", None)
            yaml.dump(fleet, path)
    tickets = folder / "examples" / "tickets" / "tickets.csv"
    with tickets.open(newline="") as file:
        rows = [{"message": row["message"], "team": row["team"]} for row in csv.DictReader(file)]
    for name, target in {"tickets.csv": "team", "train.csv": "team", "my.csv": "label"}.items():
        with (folder / name).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["message", target])
            writer.writerows(row.values() for row in rows)
    (folder / "ludwig.yaml").write_text(LUDWIG.replace("BASE", str(base)))
    save_random_adapter(folder / "peft-folder", make_model(), seed=9)
