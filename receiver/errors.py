"""Every error of the receiver, drawn once.

    ReceiverError
    ├── ConfigurationError            the settings cannot be used; says what to change
    ├── SpoolError                    the spool's directory cannot be used
    │   └── BusyError                 somebody else holds the lock
    ├── LineError                     bytes that are not a line of this segment
    └── DeliveryError                 a request that does not get its 200
        ├── UnsignedError       401   the sender gets one constant body for all of these
        │   ├── MissingHeaderError, DuplicateHeaderError
        │   ├── BadIdError, BadTimestampError, StaleDeliveryError
        │   └── WrongSignatureError
        ├── BrokenBodyError     400
        ├── SlowBodyError       408
        ├── TooLargeError       413
        ├── EncodedBodyError    415
        └── UnavailableError    503   our fault: the sender should try again
            └── SpoolFullError, SpoolFailedError, SpoolSlowError, UnexpectedError

Each `DeliveryError` knows the status that the sender sees and the word under which it is counted.
Messages go to our own log only, and never hold a body, a signature or a secret.
"""

from __future__ import annotations

from typing import ClassVar


class ReceiverError(Exception):
    """Any error that this package raises on purpose."""


class ConfigurationError(ReceiverError):
    """The settings cannot be used: the message says which, where, and what to do next."""


class SpoolError(ReceiverError):
    """The spool's directory cannot be used."""


class BusyError(SpoolError):
    """Another process holds the lock that is needed here."""


class LineError(ReceiverError):
    """Bytes that are not a line of this segment; `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class DeliveryError(ReceiverError):
    """A request that is not answered with 200."""

    status: ClassVar[int]
    reason: ClassVar[str]


class UnsignedError(DeliveryError):
    """A delivery that nobody with one of our keys has signed, or not lately."""

    status = 401


class MissingHeaderError(UnsignedError):
    """One of the three headers is missing or empty."""

    reason = "missing_header"


class DuplicateHeaderError(UnsignedError):
    """One of the three headers is there twice, so nobody can say which one was signed."""

    reason = "duplicate_header"


class BadIdError(UnsignedError):
    """The id is not 1 to 256 visible ASCII characters without a comma."""

    reason = "bad_id"


class BadTimestampError(UnsignedError):
    """The timestamp is not 1 to 12 ASCII digits."""

    reason = "bad_timestamp"


class StaleDeliveryError(UnsignedError):
    """Signed too long ago, or in the future: a replay, or a clock that is wrong."""

    reason = "stale"

    def __init__(self, age_s: int, tolerance_s: int) -> None:
        super().__init__(f"signed {age_s} s ago, tolerance is {tolerance_s} s")
        self.age_s = age_s


class WrongSignatureError(UnsignedError):
    """No entry of the signature header was made with one of our keys."""

    reason = "wrong_signature"


class BrokenBodyError(DeliveryError):
    """The body ended before its declared length, or its framing is broken."""

    status = 400
    reason = "broken_body"


class SlowBodyError(DeliveryError):
    """The body did not arrive in time."""

    status = 408
    reason = "slow_body"


class TooLargeError(DeliveryError):
    """The body is longer than the limit."""

    status = 413
    reason = "too_large"


class EncodedBodyError(DeliveryError):
    """The body is compressed; the receiver never decompresses, so there is no bomb to fear."""

    status = 415
    reason = "encoded_body"


class UnavailableError(DeliveryError):
    """We cannot keep the event now: the sender should come again."""

    status = 503


class SpoolFullError(UnavailableError):
    """Too much waits for the disk already, or the disk has too little space left."""

    reason = "spool_full"


class SpoolFailedError(UnavailableError):
    """The disk refused to take the event, or the writer is closed."""

    reason = "spool_failed"


class SpoolSlowError(UnavailableError):
    """The disk did not answer in time. The event may become durable yet, which is harmless."""

    reason = "spool_slow"


class UnexpectedError(UnavailableError):
    """A bug of ours. It is answered as a passing failure, so that the sender comes again."""

    reason = "unexpected"
