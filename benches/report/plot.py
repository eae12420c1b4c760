"""Draws plots as SVG that stands in a page by itself: bars and lines on log scales, latency histograms."""

import math
from html import escape

COLOURS = ["#2c6fbb", "#4aa3a2", "#7d5ba6", "#d68910", "#8d6e63", "#7f8c8d", "#2e8b57", "#555555", "#b8860b"]
# The same in every plot; who is not here gets the colour of its place.
OWN = {"thinsnap": "#c0392b", "plain loop file": "#555555", "qcow2": "#2e8b57", "overlayfs on ext4": "#2c6fbb"}
WIDTH, LABEL, RIGHT = 900, 210, 130


class _Scale:
    """Positions on a log axis."""

    def __init__(self, values, start, end):
        low, high = math.log10(min(values)), math.log10(max(values))
        self.low, self.high = math.floor(low * 2) / 2, max(math.ceil(high * 2) / 2, math.floor(low * 2) / 2 + 0.5)
        self.start, self.end = start, end

    def at(self, value):
        """Where a value stands."""
        return self.start + (math.log10(value) - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self):
        """Powers of ten on the axis, and their threefold where there are few."""
        decades = [10.0 ** n for n in range(math.ceil(self.low), math.floor(self.high) + 1)]
        if len(decades) < 3:
            decades += [3 * 10.0 ** n for n in range(math.floor(self.low), math.ceil(self.high))]
        return sorted(tick for tick in decades if self.low <= math.log10(tick) <= self.high)


def _colour(number, name):
    return OWN.get(name, COLOURS[number % len(COLOURS)])


def _short(value):
    for limit, suffix in [(1e9, "G"), (1e6, "M"), (1e3, "k")]:
        if value >= limit:
            return f"{value / limit:g}{suffix}"
    return f"{value:g}"


def _text(x, y, words, anchor="start", extra=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{extra}>{escape(words)}</text>'


def _svg(height, parts, title):
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title, quote=True)}">'
        f'{"".join(parts)}</svg>')


def _legend(names, y):
    parts, x = [], LABEL
    for number, name in enumerate(names):
        width = 30 + 7.4 * len(name)
        if x + width > WIDTH and x > LABEL:
            x, y = LABEL, y + 16
        parts.append(f'<rect x="{x:.0f}" y="{y - 9}" width="10" height="10" fill="{_colour(number, name)}"/>')
        parts.append(_text(x + 14, y, name))
        x += width
    return parts, y + 10


def bars(title, unit, rows, stacks, value):
    """Horizontal bars on a log scale. `value(row, stack)` answers (median, least, most, words) or None."""
    known = {(row, stack): value(row, stack) for row in rows for stack in stacks}
    known = {key: cell for key, cell in known.items() if cell and cell[0] > 0}
    if not known:
        return ""
    scale = _Scale([cell[0] for cell in known.values()], LABEL, WIDTH - RIGHT)
    # The smallest bar must be seen.
    scale.low -= 0.25
    parts, y = _legend(stacks, 14)
    top = y
    y += 18
    for row in rows:
        parts.append(_text(LABEL - 8, y + 8, row, "end"))
        for number, stack in enumerate(stacks):
            if (row, stack) not in known:
                continue
            middle, least, most, words = known[row, stack]
            x = scale.at(middle)
            parts.append(
                f'<rect x="{LABEL}" y="{y}" width="{x - LABEL:.1f}" height="10" fill="{_colour(number, stack)}"/>')
            if least > 0 and most > least and math.log10(least) > scale.low:
                parts.append(f'<path d="M{scale.at(least):.1f} {y + 5}H{min(scale.at(most), WIDTH):.1f}" stroke="#222"/>')
            parts.append(_text(x + 5, y + 9, words, extra=' class="small"'))
            y += 13
        y += 9
    grid = [
        f'<path d="M{scale.at(tick):.1f} {top + 6}V{y}" stroke="#ddd"/>' + _text(scale.at(tick), y + 12, _short(tick), "middle")
        for tick in scale.ticks()]
    return _svg(y + 18, [*grid, *parts, _text(WIDTH, y + 12, unit, "end")], title)


def lines(title, unit, x_words, series):
    """Lines over a number, both axes log. `series`: {name: [(x, y), …]}."""
    series = {name: [(x, y) for x, y in points if x and y and y > 0] for name, points in series.items()}
    points = [point for some in series.values() for point in some]
    if not points:
        return ""
    parts, top = _legend(series, 14)
    bottom = top + 270
    across = _Scale([x for x, _ in points], 70, WIDTH - 30)
    up = _Scale([y for _, y in points], bottom, top + 12)
    for tick in across.ticks():
        parts.append(f'<path d="M{across.at(tick):.1f} {top + 8}V{bottom}" stroke="#ddd"/>')
        parts.append(_text(across.at(tick), bottom + 14, _short(tick), "middle"))
    for tick in up.ticks():
        parts.append(f'<path d="M70 {up.at(tick):.1f}H{WIDTH - 30}" stroke="#ddd"/>')
        parts.append(_text(64, up.at(tick) + 4, _short(tick), "end"))
    for number, (name, some) in enumerate(series.items()):
        colour = _colour(number, name)
        places = [f"{across.at(x):.1f},{up.at(y):.1f}" for x, y in sorted(some)]
        parts.append(f'<polyline points="{" ".join(places)}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{place.split(",")[0]}" cy="{place.split(",")[1]}" r="3" fill="{colour}"/>' for place in places]
    parts += [_text(WIDTH - 30, bottom + 30, x_words, "end"), _text(8, top + 4, unit)]
    return _svg(bottom + 38, parts, title)


def histogram(title, series):
    """Shares of requests over their latency. `series`: {name: {upper bound in ns: count}}."""
    series = {name: {int(ns): count for ns, count in bins.items()} for name, bins in series.items() if bins}
    if not series:
        return ""
    shares = {
        name: {ns / 1000: count / sum(bins.values()) for ns, count in sorted(bins.items())} for name, bins in series.items()}
    parts, top = _legend(shares, 14)
    bottom = top + 170
    across = _Scale([us for bins in shares.values() for us in bins], 70, WIDTH - 30)
    most = max(share for bins in shares.values() for share in bins.values())
    for tick in across.ticks():
        parts.append(f'<path d="M{across.at(tick):.1f} {top + 8}V{bottom}" stroke="#ddd"/>')
        parts.append(_text(across.at(tick), bottom + 14, _short(tick), "middle"))
    for number, (name, bins) in enumerate(shares.items()):
        colour = _colour(number, name)
        first, last = min(bins), max(bins)
        places = [f"{across.at(first):.1f},{bottom}"]
        places += [f"{across.at(us):.1f},{bottom - share / most * (bottom - top - 14):.1f}" for us, share in bins.items()]
        places.append(f"{across.at(last):.1f},{bottom}")
        parts.append(
            f'<polygon points="{" ".join(places)}" fill="{colour}" fill-opacity="0.15" stroke="{colour}" stroke-width="1.5"/>')
    parts += [_text(WIDTH - 30, bottom + 30, "latency, µs", "end"), _text(8, top + 4, f"share of requests, up to {most:.0%}")]
    return _svg(bottom + 38, parts, title)
