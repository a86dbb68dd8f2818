"""What can go wrong while serving, grouped by what a client would do about it.

Each class knows its HTTP status and the code that clients of OpenAI's API branch on; `parameter` names the field of
the request that is at fault, where one is. Each API wraps them in a shape of its own.
"""

from typing import ClassVar

from keystone.errors import KeystoneError


class ServeError(KeystoneError):
    """Root of the errors that a client may see.

    Args:
        message: what is wrong and what to do.
        parameter: the request's field at fault.
    """

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None

    def __init__(self, message: str, *, parameter: str | None = None) -> None:
        super().__init__(message)
        self.parameter = parameter


class BadRequestError(ServeError):
    """The request is not what the API takes."""

    exit_code = 7
    status = 400
    kind = "invalid_request_error"
    code = "invalid_value"


class UnsupportedValueError(BadRequestError):
    """A value would change the output and cannot be honoured here."""

    code = "unsupported_value"


class LimitError(BadRequestError):
    """The request is larger than this server allows, or than the model can take."""

    code = "context_length_exceeded"


class BodyTooLargeError(ServeError):
    """The body has more bytes than this server reads."""

    status = 413
    kind = "invalid_request_error"
    code = "body_too_large"


class SlowBodyError(ServeError):
    """The body did not arrive in time."""

    status = 408
    kind = "invalid_request_error"
    code = "body_timeout"


class NotOfferedError(ServeError):
    """The API has such an endpoint, and this server has not, on purpose."""

    status = 501
    kind = "invalid_request_error"
    code = "not_offered"


NO_EMBEDDINGS = "embeddings are not offered: this server has models that write text, and none that measures it"


class UnauthorizedError(ServeError):
    """No bearer token, or one that is not known."""

    status = 401
    kind = "invalid_request_error"
    code = "invalid_api_key"


class ForbiddenHostError(ServeError):
    """A request without a token came under a name that is not this machine's own."""

    status = 403
    kind = "invalid_request_error"
    code = "forbidden_host"


class UnknownModelError(ServeError):
    """The name is no ref, digest or alias that is served here."""

    exit_code = 5
    status = 404
    kind = "invalid_request_error"
    code = "model_not_found"


class UnknownPathError(ServeError):
    """There is no such endpoint."""

    status = 404
    kind = "invalid_request_error"
    code = "unknown_url"


class WrongMethodError(ServeError):
    """The endpoint is there and takes another HTTP method."""

    status = 405
    kind = "invalid_request_error"
    code = "method_not_allowed"


class BusyError(ServeError):
    """The queue is full.

    Args:
        message: as ever.
        retry_after: seconds after which trying again makes sense.
    """

    status = 429
    kind = "rate_limit_error"
    code = "queue_full"

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StoppingError(ServeError):
    """The server or the model is on its way out and takes nothing new."""

    status = 503
    code = "stopping"


class ModelFailedError(ServeError):
    """A model could not be loaded, or a generation broke; the message says which and why."""

    status = 500
    code = "generation_failed"


class TooManyModelsError(ServeError):
    """As many bases as may be in memory are in use."""

    status = 503
    code = "no_room_for_model"


class TimeLimitError(ServeError):
    """A generation took longer than this server allows."""

    status = 504
    kind = "timeout_error"
    code = "time_limit"
