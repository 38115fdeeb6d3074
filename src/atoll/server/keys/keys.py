"""Keys: made once, shown once, kept as a digest."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Row, select, update

from atoll.errors import NotFound, UsageError
from atoll.server.caller import Caller, Scope
from atoll.server.keys.database import Database
from atoll.server.keys.tables import ABOUT, KEYS

MAX_KEY_CHARS = 128
MAX_ADAPTERS = 100
MAX_PATTERN_CHARS = 200
_SECRET_BYTES = 32
_NAME = re.compile(r"[\w][\w .@/+-]{0,63}", re.ASCII)
_KEY = re.compile(r"atoll-([0-9a-f]{12})-[A-Za-z0-9_-]{43}")


class KeyNotFound(NotFound):
    """No key of that id."""

    code = "key_not_found"


@dataclass(frozen=True, kw_only=True)
class KeyLimits:
    """What one key may do on each server; None: no limit. tokens_per_minute: of prompts and answers together."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None


@dataclass(frozen=True, kw_only=True)
class NewKey:
    """What a key is to be. Raises UsageError if it cannot be that. expires_at_s: Unix seconds, None for never."""

    name: str = "key"
    tenant: str = "default"
    scopes: frozenset[Scope] = frozenset({"use"})
    adapters: tuple[str, ...] = ("*",)
    priority: int = 0
    limits: KeyLimits = KeyLimits()
    expires_at_s: int | None = None

    def __post_init__(self) -> None:
        for what, text in (("name", self.name), ("tenant", self.tenant)):
            allowed = "1 to 64 letters, digits, spaces and . @ / + - _, a letter or digit first"
            _check(f"the {what} {text[:80]!r} is not allowed", _NAME.fullmatch(text) is not None, allowed)
        _check("a key needs a scope", bool(self.scopes), "choose use, admin or both")
        fit = all(0 < len(pattern) <= MAX_PATTERN_CHARS and pattern.isprintable() for pattern in self.adapters)
        allowed = f"1 to {MAX_ADAPTERS} patterns of adapter names, such as 'support-*'"
        _check("the patterns of adapters are not allowed", fit and 0 < len(self.adapters) <= MAX_ADAPTERS, allowed)
        limits = self.limits.requests_per_minute, self.limits.tokens_per_minute, self.limits.concurrency
        in_range = all(limit is None or 1 <= limit < 2**31 for limit in limits)
        _check("a limit is out of range", in_range, "limits are positive numbers below 2**31; leave out what has none")
        _check("the priority is out of range", abs(self.priority) < 2**31, "smaller goes first, 0 is usual")


@dataclass(frozen=True, kw_only=True)
class Key(NewKey):
    """A key as it is kept; of the key itself only a digest."""

    key_id: str
    created_at_s: int
    revoked_at_s: int | None = None
    digest: str = field(repr=False)

    @property
    def caller(self) -> Caller:
        """What the server needs to know of its holder."""
        return Caller(
            key_id=self.key_id,
            tenant=self.tenant,
            scopes=self.scopes,
            adapters=self.adapters,
            priority=self.priority,
        )


def key_id_of(key: str) -> str | None:
    """The id inside a key; None for what no key looks like."""
    found = _KEY.fullmatch(key) if len(key) <= MAX_KEY_CHARS else None
    return found[1] if found else None


def digest_of(key: str) -> str:
    """What is kept of a key: 256 random bits need no slow hash."""
    return hashlib.sha256(key.encode()).hexdigest()


class KeyStore:
    """The keys in a database. All methods raise DatabaseUnavailable when it does not answer."""

    def __init__(self, database: Database, now_s: Callable[[], float] = time.time) -> None:
        self._database = database
        self._now_s = now_s

    def create(self, new: NewKey) -> tuple[Key, str]:
        """Make a key; the second is the key itself, which nobody can get again."""
        key_id = secrets.token_hex(6)
        text = f"atoll-{key_id}-{secrets.token_urlsafe(_SECRET_BYTES)}"
        created_at_s, digest = int(self._now_s()), digest_of(text)
        values = {
            "key_id": key_id,
            "digest": digest,
            "name": new.name,
            "tenant": new.tenant,
            "scopes": sorted(new.scopes),
            "adapters": list(new.adapters),
            "priority": new.priority,
            "created_at_s": created_at_s,
            "expires_at_s": new.expires_at_s,
            **vars(new.limits),
        }
        with self._database.writing() as connection:
            connection.execute(KEYS.insert().values(values))
            connection.execute(_NEXT_VERSION)
        return Key(**vars(new), key_id=key_id, created_at_s=created_at_s, digest=digest), text

    def list(self) -> list[Key]:
        """All keys, revoked and expired ones too, oldest first."""
        with self._database.reading() as connection:
            rows = connection.execute(select(KEYS).order_by(KEYS.c.created_at_s, KEYS.c.key_id)).all()
        return [_key(row) for row in rows]

    def revoke(self, key_ids: Sequence[str]) -> None:
        """End keys, all or none; one that has ended stays so. Raises KeyNotFound."""
        with self._database.writing() as connection:
            for key_id in key_ids:
                found = connection.execute(select(KEYS.c.revoked_at_s).where(KEYS.c.key_id == key_id)).first()
                if found is None:
                    raise KeyNotFound(f"no key {key_id[:80]!r}", mend="`atoll keys list` shows their ids")
                if found.revoked_at_s is None:
                    revoked = update(KEYS).where(KEYS.c.key_id == key_id).values(revoked_at_s=int(self._now_s()))
                    connection.execute(revoked)
            connection.execute(_NEXT_VERSION)

    def version(self) -> int:
        """A number that grows with every change of a key."""
        with self._database.reading() as connection:
            return int(connection.execute(select(ABOUT.c.keys_version)).scalar_one())


_NEXT_VERSION = update(ABOUT).values(keys_version=ABOUT.c.keys_version + 1)


def _key(row: Row[Any]) -> Key:
    limits = KeyLimits(
        requests_per_minute=row.requests_per_minute,
        tokens_per_minute=row.tokens_per_minute,
        concurrency=row.concurrency,
    )
    return Key(
        key_id=row.key_id,
        name=row.name,
        tenant=row.tenant,
        scopes=frozenset(row.scopes),
        adapters=tuple(row.adapters),
        priority=row.priority,
        limits=limits,
        created_at_s=row.created_at_s,
        expires_at_s=row.expires_at_s,
        revoked_at_s=row.revoked_at_s,
        digest=row.digest,
    )


def _check(what: str, is_valid: bool, mend: str) -> None:
    if not is_valid:
        raise UsageError(what, mend=mend)
