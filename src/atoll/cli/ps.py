"""`atoll ps`: what a running server does at this moment."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atoll.cli.output import plain

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

TIMEOUT_S = 5.0
_MAX_ANSWER_BYTES = 16 << 20


def ps(
    url: Annotated[
        str, typer.Option(envvar="ATOLL_URL", help="The server's address.", show_envvar=True)
    ] = "http://127.0.0.1:3000",
    key: Annotated[
        str | None,
        typer.Option(envvar="ATOLL_KEY", help="A key with the scope admin, if the server has keys.", show_envvar=True),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object; with --watch one a line.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every --interval seconds, until Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
) -> None:
    """Show a running server: its requests, its KV cache, and where its adapters are.

    Example: atoll ps --watch
    """
    try:
        if as_json:
            _print_json(url, key, interval if watch else None)
        elif watch:
            _watch(url, key, interval)
        else:
            from rich.console import Console

            Console(markup=False).print(_view(_state(url, key)))
    except KeyboardInterrupt:
        return


def _print_json(url: str, key: str | None, interval_s: float | None) -> None:
    print(json.dumps(_state(url, key)), flush=True)
    while interval_s is not None:
        time.sleep(interval_s)
        print(json.dumps(_state(url, key)), flush=True)


def _watch(url: str, key: str | None, interval_s: float) -> None:
    from rich.console import Console
    from rich.live import Live

    with Live(_view(_state(url, key)), console=Console(markup=False), auto_refresh=False) as live:
        while True:
            time.sleep(interval_s)
            live.update(_view(_state(url, key)), refresh=True)


def _state(url: str, key: str | None) -> dict[str, Any]:
    """The server's own account. Raises UsageError, Unauthorized, Forbidden or Unavailable."""
    import http.client
    import urllib.error
    import urllib.request

    from atoll.errors import Unavailable, UsageError

    if not url.startswith(("http://", "https://")):
        raise UsageError(f"{url!r} is not a server's address", mend="write --url http://HOST:PORT")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        request = urllib.request.Request(f"{url.rstrip('/')}/atoll/state", headers=headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            state: dict[str, Any] = json.loads(answer.read(_MAX_ANSWER_BYTES))
    except urllib.error.HTTPError as error:
        raise _refusal(url, error) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise Unavailable(
            f"no Atoll server answers at {url}", why=str(error), mend="start one with `atoll serve`, or name it: --url"
        ) from None
    if not isinstance(state, dict) or not {"requests", "kv", "tiers", "adapters"} <= state.keys():
        raise Unavailable(f"what answers at {url} is not an Atoll server")
    return state


def _refusal(url: str, error: Any) -> Exception:
    from atoll.errors import Forbidden, Unauthorized, Unavailable

    with error:
        if error.code == 401:
            return Unauthorized(f"the server at {url} wants a key", mend="set ATOLL_KEY to one with the scope admin")
        if error.code == 403:
            return Forbidden(f"the server at {url} shows this to admins only", mend="use a key with the scope admin")
        return Unavailable(f"what answers at {url} is not an Atoll server", why=f"it answers {error.code}")


def _view(state: dict[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    requests, kv, tiers = state["requests"], state["kv"], state["tiers"]
    found = kv["prefix_tokens_found"] / max(1, kv["prefix_tokens"])
    lines = [
        f"{state['base_model']}  up {_duration(state['uptime_s'])}" + ("" if state["is_alive"] else "  NOT RUNNING"),
        f"requests  {requests['running']} running, {requests['waiting']} waiting, "
        f"{requests['finished']} finished, {requests['failed']} failed, {requests['preemptions']} preempted",
        f"KV cache  {kv['use_ratio']:.0%} of {kv['blocks']} blocks in use, {kv['cached']} cached; "
        f"{found:.0%} of prompt tokens found",
        f"adapters  {sum(held['tier'] == 'device' for held in state['adapters'])} of {tiers['slots']} slots, "
        f"{tiers['host_bytes'] / 2**20:.1f} of {tiers['max_host_bytes'] / 2**20:.0f} MiB of host memory; "
        f"{tiers['loads']} loads, {tiers['slot_evictions']} evictions, {tiers['loading']} loading",
    ]
    return Group(*(Text(plain(line)) for line in lines), _table(state))


def _table(state: dict[str, Any]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("adapter", overflow="fold")
    table.add_column("tier")
    for name in ("running", "waiting"):
        table.add_column(name, justify="right")
    table.add_column("pinned")
    requests = state["requests"]
    waiting = dict(requests["waiting_by_adapter"])
    rows = [("(base)", "-", requests["running_by_adapter"].get("", 0), waiting.pop("", 0), False)]
    for held in state["adapters"]:
        rows.append((held["id"], held["tier"], held["running"], held["waiting"], held["pinned"]))
        waiting.pop(held["name"], None)
    rows += [(name, "disk", 0, number, False) for name, number in waiting.items()]
    for name, tier, running, number, is_pinned in rows:
        table.add_row(plain(name), tier, str(running), str(number), "pinned" if is_pinned else "")
    return table


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days} d {hours:02}:{minutes:02}:{seconds:02}" if days else f"{hours:02}:{minutes:02}:{seconds:02}"
