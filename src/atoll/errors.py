"""The one error tree: every error that a user meets says what, where, why and how to mend it."""

from __future__ import annotations


class AtollError(Exception):
    """An error with an explanation fit for a terminal and for an API.

    `where` is a place (file:line:column, an adapter, a request field), `why` the cause, `mend` what the user can do.
    """

    exit_code = 1
    http_status = 500
    code = "internal_error"

    def __init__(self, what: str, *, where: str | None = None, why: str | None = None, mend: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.why = why
        self.mend = mend

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.why:
            lines.append(f"  why:  {self.why}")
        if self.mend:
            lines.append(f"  mend: {self.mend}")
        return "\n".join(lines)


class UsageError(AtollError):
    """The command or the request was called wrongly."""

    exit_code = 2
    http_status = 400
    code = "invalid_request"


class RequestInvalid(UsageError):
    """A generation request has a parameter out of range or does not fit the model."""


class ConfigError(AtollError):
    """A YAML file does not say something valid."""

    exit_code = 3
    http_status = 422
    code = "invalid_config"


class DataError(AtollError):
    """A data file or a row of it cannot be used."""

    exit_code = 3
    http_status = 422
    code = "invalid_data"


class NotFound(AtollError):
    """Something named does not exist."""

    exit_code = 4
    http_status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    """The base model cannot be had from any source."""

    code = "model_not_found"


class AdapterNotFound(NotFound):
    """No adapter of that name and revision."""

    code = "model_not_found"


class TaskNotFound(NotFound):
    """No task of that name or path."""

    code = "task_not_found"


class Incompatible(AtollError):
    """Two things that are valid alone do not go together."""

    exit_code = 5
    http_status = 422
    code = "incompatible"


class AdapterInvalid(Incompatible):
    """An adapter's files are damaged, foreign to the base model, or use a feature that is not implemented."""

    code = "adapter_invalid"


class OverBudget(AtollError):
    """To go on could cost more than the user allows."""

    exit_code = 6
    http_status = 402
    code = "over_budget"


class Overloaded(AtollError):
    """The queue is full; try again later."""

    http_status = 429
    code = "overloaded"
    retry_after_s = 1


class RateLimited(Overloaded):
    """The caller has used up what its key allows for now. retry_after_s: when to try again, whole seconds."""

    code = "rate_limit_exceeded"

    def __init__(self, what: str, *, retry_after_s: int) -> None:
        super().__init__(what, mend=f"try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class Unauthorized(AtollError):
    """No key, or none that is valid."""

    exit_code = 2
    http_status = 401
    code = "invalid_api_key"


class Forbidden(AtollError):
    """Whoever asks may not do this."""

    exit_code = 2
    http_status = 403
    code = "permission_denied"


class Unavailable(AtollError):
    """Something that the server stands on is gone for now, or the server itself is about to be."""

    http_status = 503
    code = "unavailable"
    retry_after_s = 5


class StorageError(Unavailable):
    """The disk does not take what is to be kept on it."""

    code = "storage_error"
