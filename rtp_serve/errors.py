"""The error tree. Each error says what was wrong, where, and what is allowed.

`status` and `code` are what an HTTP edge answers with; the edge is the only place that reads them.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class RtpServeError(Exception):
    """Base of every error this package raises on purpose."""

    status = 500
    code = "internal_error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ConfigError(RtpServeError):
    """A configuration file or argument is wrong; nothing was started."""

    code = "invalid_config"


class CheckpointError(RtpServeError):
    """A checkpoint or tokenizer cannot be used: missing, malformed or of an unknown kind."""

    code = "invalid_checkpoint"


class CorruptWeights(RtpServeError):
    """A file of the weight store is not what was written; nothing may be computed with it."""

    code = "corrupt_weights"


class ArenaMismatch(RtpServeError):
    """The node's KV arena is no arena, or one for blocks of another format."""

    code = "arena_mismatch"


class ArenaUnavailable(RtpServeError):
    """There can be no KV arena on this node now; serving goes on without it."""

    code = "arena_unavailable"


class DiskUnavailable(RtpServeError):
    """There can be no KV store in this directory now; serving goes on without it."""

    code = "disk_unavailable"


class StoreUnavailable(RtpServeError):
    """A KV-store actor cannot be the node's store; serving goes on without it."""

    code = "store_unavailable"


class InvalidRequest(RtpServeError):
    """The caller's mistake. `param` names the field, as in OpenAI's error object."""

    status = 400
    code = "invalid_value"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ContextLengthExceeded(InvalidRequest):
    """Prompt and requested tokens do not fit the model's context."""

    code = "context_length_exceeded"


class UnsupportedParameter(InvalidRequest):
    """A field we know, with a value that would silently not do what it says."""

    code = "unsupported_parameter"


class Unauthorized(RtpServeError):
    """No key, or a key nobody knows."""

    status = 401
    code = "invalid_api_key"


class Forbidden(RtpServeError):
    """The route is not for this caller."""

    status = 403
    code = "forbidden"


class ModelNotFound(RtpServeError):
    """No such model: neither a directory, a repository nor an alias, or not served here."""

    status = 404
    code = "model_not_found"


class ReloadRefused(RtpServeError):
    """Other weights cannot take the place of those that run, which go on."""

    status = 409
    code = "reload_refused"


class ReloadFailed(RtpServeError):
    """Some engine could not load the weights, and goes on with those it has."""

    status = 409
    code = "reload_failed"


class StreamNotFound(RtpServeError):
    """No stream of that id is kept for this caller."""

    status = 404
    code = "stream_not_found"


class StreamExists(RtpServeError):
    """A stream of this request id is kept already."""

    status = 409
    code = "stream_exists"


class StreamEventsGone(RtpServeError):
    """The events that come next are not kept any more."""

    status = 410
    code = "stream_events_gone"


class NoKVTiers(RtpServeError):
    """There is nothing below the device's cache that could be trimmed or pinned."""

    status = 409
    code = "no_kv_tiers"

    def __init__(self) -> None:
        super().__init__(
            "there are no KV tiers below the device: engine.kv_store.host.enable is not set, or "
            "no node has room for an arena, of which the replicas' logs tell"
        )


class NoMaster(RtpServeError):
    """Nobody decides where requests go but Ray Serve."""

    status = 409
    code = "no_master"

    def __init__(self) -> None:
        super().__init__(
            "there is no Master: routing.master is never, or there is one replica and it is auto"
        )


class MasterUnavailable(RtpServeError):
    """The Master does not answer; requests go on without it."""

    status = 503
    code = "master_unavailable"


class RequestTimeout(RtpServeError):
    """The request did not arrive, or was not answered, in the time a request may take."""

    status = 408
    code = "timeout"


class PayloadTooLarge(RtpServeError):
    """The body is larger than the server accepts."""

    status = 413
    code = "payload_too_large"


class UnsupportedMediaType(RtpServeError):
    """The body is not declared to be JSON."""

    status = 415
    code = "unsupported_media_type"


class HeadersTooLarge(RtpServeError):
    """Request line and headers are larger than the server accepts."""

    status = 431
    code = "headers_too_large"


class Overloaded(RtpServeError):
    """The queue is full. `retry_after_s` is when to come back, in seconds."""

    status = 429
    code = "overloaded"

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineDead(RtpServeError):
    """The engine or the replica that ran the request is gone."""

    status = 503
    code = "engine_unavailable"


class ModelChanged(EngineDead):
    """A stream cannot go on here: it began with other weights or another arithmetic."""

    code = "model_changed"


class SharedMemoryUnavailable(RtpServeError):
    """Processes of this node cannot share memory now."""

    code = "shared_memory_unavailable"


class WrongLayout(RtpServeError):
    """Blocks of one replica's KV memory cannot be copied into another's, or are not in it."""

    code = "wrong_layout"


class RankError(RtpServeError):
    """Ranks that compute together cannot go on; `rank` is the one whose doing it is."""

    status = 503
    code = "ranks_failed"

    def __init__(self, message: str, rank: int | None = None) -> None:
        """`rank` of None is whoever gives the ranks their steps, or one that is not known."""
        super().__init__(message)
        self.rank = rank


class RankLost(RankError):
    """A rank has died, or has left while others wait for it."""


class RankLate(RankError):
    """A rank did not come in the time that others wait for it."""


class RanksAborted(RankError):
    """A rank has ended the work of all."""


class ChannelClosed(RankError):
    """This side has closed what it reads or writes, or the writer has and all is read."""


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """A suffix such as `; did you mean 'max_num_seqs'?`, or the whole list when nothing is near."""
    options = sorted(allowed)
    near = get_close_matches(name, options, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; allowed: {', '.join(options)}" if options else ""
