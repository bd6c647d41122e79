"""The segments of a recording in other formats: a summary, Audacity labels, WebVTT."""

import heapq
import html
from collections.abc import Iterable
from typing import Any

from spectro.files import printable
from spectro.predict.results import NO_SPEECH
from spectro.predict.timeline.segments import SILENCE, Segment

STRONGEST = 5


class Summary:
    """A summary of a recording; segments are added as they come, and are not kept.

    Args:
        path: the recording.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._seconds: dict[str, float] = {}
        self._end_s = 0.0
        self._strongest: list[tuple[float, float, int, Segment]] = []
        self._added = 0

    def add(self, segment: Segment) -> None:
        """Take a segment into account."""
        self._end_s = max(self._end_s, segment.end_s)
        lasts = segment.end_s - segment.start_s
        self._seconds[segment.label] = self._seconds.get(segment.label, 0.0) + lasts
        if segment.confidence is not None and segment.label != NO_SPEECH:
            self._added += 1
            entry = (segment.confidence, -segment.start_s, -self._added, segment)  # no two are equal
            (heapq.heappush if len(self._strongest) < STRONGEST else heapq.heappushpop)(self._strongest, entry)

    def content(self) -> dict[str, Any]:
        """Return the summary as JSON values.

        `duration_s`; `sound_s`, over all channels; `silence_s`; `shares`: the share of each label, and of `no speech`,
        in the time with sound, largest first; `strongest`: the moments with the highest confidence, with `start_s`,
        `end_s`, `label`, `confidence` and `channel`.
        """
        seconds = {label: seconds for label, seconds in self._seconds.items() if label != SILENCE}
        sound_s = sum(seconds.values())
        order = sorted(seconds, key=lambda label: (-seconds[label], label))
        strongest = sorted(self._strongest, reverse=True, key=lambda entry: entry[:3])
        return {
            "path": self._path,
            "duration_s": round(self._end_s, 3),
            "sound_s": round(sound_s, 3),
            "silence_s": round(self._seconds.get(SILENCE, 0.0), 3),
            "shares": {label: round(seconds[label] / sound_s, 4) for label in order},
            "strongest": [_moment(segment) for *_, segment in strongest],
        }


def audacity(segments: Iterable[Segment]) -> str:
    """Return the segments with speech as an Audacity label track: start, end and text, separated by tabs."""
    return "".join(f"{one.start_s:.6f}\t{one.end_s:.6f}\t{_caption(one)}\n" for one in segments if _speaks(one))


def webvtt(segments: Iterable[Segment]) -> str:
    """Return the segments with speech as WebVTT, which players and browsers show under a recording.

    Source: W3C, WebVTT: The Web Video Text Tracks Format.
    """
    cues = (
        f"\n{_clock(one.start_s)} --> {_clock(one.end_s)}\n{html.escape(_caption(one), quote=False)}\n"
        for one in sorted(segments, key=lambda one: one.start_s)
        if _speaks(one)
    )
    return "WEBVTT\n" + "".join(cues)


def _speaks(segment: Segment) -> bool:
    return segment.label not in (SILENCE, NO_SPEECH)


def _moment(segment: Segment) -> dict[str, Any]:
    names = ("start_s", "end_s", "label", "confidence", "channel")
    return {name: getattr(segment, name) for name in names}


def _caption(segment: Segment) -> str:
    party = "" if segment.channel is None else f"channel {segment.channel}: "
    return f"{party}{printable(segment.label)} {segment.confidence or 0:.2f}"


def _clock(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}.{rest % 1000:03}"
