"""What the service takes."""

from dataclasses import dataclass, fields

from spectro.errors import PredictionError

MEBIBYTE = 2**20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the service takes.

    Args:
        max_mb: largest upload of a clip or picture, in MiB.
        max_timeline_mb: largest upload of a long recording, in MiB.
        max_memory_mb: uploads that are in memory at a time, over all clients, in MiB; more get 503. A client address
            has half of it; more get 429.
        max_duration_s: longest clip, in seconds.
        max_timeline_s: longest recording for a timeline, in seconds.
        max_samples: samples that a clip may hold, over all channels and at its own sampling rate.
        max_timeline_samples: the same for a timeline's recording.
        max_pending: requests that are worked on or wait, over all clients; more get 503.
        max_per_client: the same for each client address; more get 429. Of IPv6, the first 64 bits are an address.
        max_timelines: timelines that are made or wait; more get 503. One is made at a time.
        max_timelines_per_client: the same for each client address; more get 429.
        max_connections: open connections; of more, the one that has waited longest for a request is closed.
        max_connections_per_client: the same for each client address that is no proxy.
        max_guesses: wrong keys in a minute from a client address; more get 429 without being looked at.
        header_s: time that a request's header has to come, in seconds.
        idle_s: an upload that brings nothing for this long is given up, in seconds.
        min_kb_s: slowest upload, on average and after a start of `idle_s`, in KiB a second.
    """

    max_mb: float = 32.0
    max_timeline_mb: float = 256.0
    max_memory_mb: float = 1024.0
    max_duration_s: float = 60.0
    max_timeline_s: float = 4 * 3600.0
    max_samples: int = 25_000_000
    max_timeline_samples: int = 1_500_000_000
    max_pending: int = 256
    max_per_client: int = 64
    max_timelines: int = 4
    max_timelines_per_client: int = 2
    max_connections: int = 1024
    max_connections_per_client: int = 128
    max_guesses: int = 10
    header_s: float = 10.0
    idle_s: float = 15.0
    min_kb_s: float = 16.0

    def __post_init__(self) -> None:
        for one in fields(self):
            if not getattr(self, one.name) > 0:
                raise PredictionError(f"limits.{one.name} is {getattr(self, one.name)}; it must be positive")
