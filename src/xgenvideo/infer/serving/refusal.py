"""What a request is refused with: a status, and an error in the shape that OpenAI's clients read."""

from typing import Any

from xgenvideo.errors import ConfigError, MediaError, XGenVideoError

WRONG, NOT_HERE, TRY_LATER = "invalid_request_error", "not_found_error", "rate_limit_error"


class Refusal(Exception):
    """One refusal over HTTP; `code` is short and stays the same, `param` names what was wrong in the request."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        kind: str = WRONG,
        param: str | None = None,
        retry_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.kind, self.param = status, message, code, kind, param
        self.retry_seconds = retry_seconds

    @property
    def body(self) -> dict[str, Any]:
        """The error object."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """When to come back, if that helps."""
        headers = {} if self.retry_seconds is None else {"retry-after": str(max(1, round(self.retry_seconds)))}
        return headers | ({"www-authenticate": "Bearer"} if self.status == 401 else {})


def refusal_of(error: XGenVideoError) -> Refusal:
    """One of our errors as a refusal: videos that cannot be used are 422 with their reason code, the rest 400."""
    if isinstance(error, MediaError):
        return Refusal(422, str(error), error.reason, param="video")
    if isinstance(error, ConfigError):
        return Refusal(400, str(error), "invalid_value", param=error.setting)
    return Refusal(400, str(error), "invalid_request")
