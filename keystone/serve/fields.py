"""Reading a request's body: bounded, as JSON, into a typed model, with every field accounted for.

A field that is not in the model is either known not to change the output, or refused by its name. Nothing is ignored
silently, except a null, which both APIs treat as "not given".
"""

import asyncio
import json
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from starlette.requests import Request

from keystone.serve.errors import BadRequestError, BodyTooLargeError, SlowBodyError, UnsupportedValueError

BODY_SECONDS = 30.0

M = TypeVar("M", bound="RequestFields")


class RequestFields(BaseModel):
    """A request's fields; those it does not know are kept for `refuse_unknown`."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        """Null is "not given", in parts of a request as in the whole."""
        return {key: value for key, value in given.items() if value is not None} if isinstance(given, dict) else given


async def read_body(request: Request, limit: int) -> bytes:
    """The body, if it is no larger than allowed and comes in time.

    Raises:
        BodyTooLargeError: it is larger; what comes after the limit is not read.
        SlowBodyError: it takes longer than `BODY_SECONDS`.
    """
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    raise BodyTooLargeError(f"the body is larger than {limit} bytes, the most this server reads")
                parts.append(part)
    except TimeoutError:
        raise SlowBodyError(f"the body was not complete after {BODY_SECONDS:g} seconds") from None
    return b"".join(parts)


def parse(model: type[M], body: bytes) -> M:
    """The body as a typed request.

    Raises:
        BadRequestError: it is no JSON object, or a field is missing or no such value; the field is named.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"the body is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise BadRequestError("the body is not a JSON object")
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise BadRequestError(f"{where or 'the body'}: {first['msg']}", parameter=where or None) from error


def refuse_unknown(
    fields: RequestFields, *, neutral: Collection[str], defaults: Mapping[str, Collection[Any]], prefix: str = ""
) -> None:
    """Refuse every field that this server does not know, or whose value it cannot honour.

    Args:
        fields: the request, or a part of it.
        neutral: fields that never change the output.
        defaults: fields that are accepted with these values only, since they mean "as usual".
        prefix: where the part stands, for the message.

    Raises:
        UnsupportedValueError: naming the field.
    """
    for name, value in (fields.model_extra or {}).items():
        if value is None or name in neutral:
            continue
        if any(type(value) is type(usual) and value == usual for usual in defaults.get(name, ())):
            continue
        shown = json.dumps(value)
        raise UnsupportedValueError(
            f"{prefix}{name}: {shown[:80]} would change the output and cannot be honoured by this server; leave it out",
            parameter=f"{prefix}{name}",
        )
