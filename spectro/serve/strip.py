"""The page's own drawings, as HTML: bars of probabilities, and a timeline that one can click to listen from."""

from collections.abc import Mapping, Sequence
from html import escape
from urllib.parse import quote

from spectro.predict.windows import SILENCE, Segment

COLOURS = ("#77aadd", "#ee8866", "#eedd88", "#ffaabb", "#99ddff", "#44bb99", "#bbcc33", "#aaaa00")
"""Paul Tol's light scheme (SRON/EPS/TN/09-002): told apart by all kinds of colour vision, with black text on it."""
OTHER = "#dddddd"
ROW_S = 30.0


def bars(title: str, shares: Mapping[str, float], labels: Sequence[str]) -> str:
    """Return a title, and a bar for each share (0 to 1), the largest first.

    Args:
        title: the line above.
        shares: by label.
        labels: the checkpoint's labels, which have the colours.
    """
    colours = _colours(labels)
    rows = "".join(
        f'<span>{escape(label)}</span><div class="spectro-track" aria-hidden="true"><div class="spectro-fill" '
        f'style="width:{100 * share:.1f}%;background:{colours.get(label, OTHER)}"></div></div>'
        f"<span>{100 * share:.0f} %</span>"
        for label, share in sorted(shares.items(), key=lambda pair: -pair[1])
    )
    return f'<p class="spectro-label">{escape(title)}</p><div class="spectro-bars">{rows}</div>'


def strip(segments: Sequence[Segment], labels: Sequence[str], address: str) -> str:
    """Return a player and a timeline of lines of half a minute; a segment is a button that plays from its begin.

    Args:
        segments: what is heard.
        labels: the checkpoint's labels, which have the colours.
        address: where the player finds the recording.
    """
    colours = _colours(labels)
    lines: list[str] = []
    end_s = max(segment.end_s for segment in segments)
    for start_s in (ROW_S * line for line in range(1 + int((end_s - 1e-6) // ROW_S))):
        parts = (
            _button(
                segment, max(segment.start_s, start_s) - start_s, min(segment.end_s, start_s + ROW_S) - start_s, colours
            )
            for segment in segments
            if segment.label != SILENCE and segment.start_s < start_s + ROW_S and segment.end_s > start_s
        )
        line = f'<div class="spectro-line">{"".join(parts)}</div>'
        lines.append(f'<div class="spectro-row"><span>{_clock(start_s)}</span>{line}</div>')
    legend = "".join(f'<span><i style="background:{colours[label]}"></i>{escape(label)}</span>' for label in labels)
    return (
        f'<div class="spectro-course"><p class="spectro-label">Timeline</p>'
        f'<audio controls preload="metadata" src="{escape(quote(address, safe="/=:"))}"></audio>'
        f'<div class="spectro-legend">{legend}<span>gaps: silence</span></div>'
        f'<div class="spectro-strip" role="group" aria-label="Timeline: each button plays from its begin">'
        f"{''.join(lines)}</div></div>"
    )


def _button(segment: Segment, left_s: float, right_s: float, colours: Mapping[str, str]) -> str:
    said = f"{segment.label}, {segment.confidence or 0:.2f}, from {_clock(segment.start_s)} to {_clock(segment.end_s)}"
    return (
        f'<button type="button" data-start="{segment.start_s:.3f}" title="{escape(said)}" aria-label="{escape(said)}" '
        f'style="left:{100 * left_s / ROW_S:.2f}%;width:{100 * (right_s - left_s) / ROW_S:.2f}%;'
        f'background:{colours.get(segment.label, OTHER)}">{escape(segment.label)}</button>'
    )


def _colours(labels: Sequence[str]) -> dict[str, str]:
    """Return a colour for each label, the same whatever the order."""
    return {label: COLOURS[place % len(COLOURS)] for place, label in enumerate(sorted(labels))}


def _clock(seconds: float) -> str:
    return f"{int(seconds // 60)}:{seconds % 60:04.1f}"
