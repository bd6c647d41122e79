"""Limits of what the service accepts."""

from dataclasses import dataclass, fields

from spectro.errors import PredictionError

MEBIBYTE = 2**20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits on uploads, requests and connections.

    Args:
        max_mb: largest upload of a clip or picture, in MiB.
        max_timeline_mb: largest upload of a long recording, in MiB.
        max_memory_mb: uploads in memory at a time, over all clients, in MiB; more get 503. One client address may use
            half of it; more get 429.
        max_duration_s: longest clip, in seconds.
        max_timeline_s: longest recording for a timeline, in seconds.
        max_samples: largest number of samples in a clip, over all channels, at its own sampling rate.
        max_timeline_samples: the same for a timeline's recording.
        max_pending: requests in progress or waiting, over all clients; more get 503.
        max_per_client: the same for each client address; more get 429. The first 64 bits of IPv6 count as one address.
        max_timelines: timelines in progress or waiting; more get 503. One is computed at a time.
        max_timelines_per_client: the same for each client address; more get 429.
        max_connections: open connections; beyond that, the one that has waited longest for a request is closed.
        max_connections_per_client: the same for each client address that is not a proxy.
        max_guesses: wrong keys per minute from one client address; after that, its keys get 429 unchecked.
        header_s: time for a request's header to arrive, in seconds.
        idle_s: abort an upload that sends nothing for this long, in seconds.
        min_kb_s: lowest average upload rate after the first `idle_s`, in KiB a second.
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
