"""Says in words where thinsnap wins and where it loses; every sentence is computed from the figures."""

from .figures import LEVEL, times


def _range(factors):
    least, most = min(factors), max(factors)
    return times(least) if times(least) == times(most) else f"{times(least)} to {times(most)}"


def _extremes(factors):
    """Where it is furthest ahead and where furthest behind."""
    best, worst = max(factors, key=factors.get), min(factors, key=factors.get)
    parts = [f"{times(factors[best])} ahead at {best}"] if factors[best] > LEVEL else []
    parts += [f"{times(1 / factors[worst])} behind at {worst}"] if factors[worst] < 1 / LEVEL else []
    return ", ".join(parts) or "level"


def of_section(section):
    """A sentence for each table and rival."""
    sentences = []
    for table, rival, factors in section.comparisons():
        ahead = {row: factor for row, factor in factors.items() if factor > LEVEL}
        behind = {row: 1 / factor for row, factor in factors.items() if factor < 1 / LEVEL}
        level = [row for row in factors if row not in ahead and row not in behind]
        parts = []
        for word, some in [("ahead of", ahead), ("behind", behind)]:
            if some:
                rows = "" if len(some) == len(factors) else f" ({', '.join(some)})"
                parts.append(f"{_range(some.values())} {word} {rival}{rows}")
        if level:
            rows = "" if len(level) == len(factors) else f" ({', '.join(level)})"
            parts.append(f"level with {rival}{rows}")
        sentences.append(f"{section.tables[table].title}: {'; '.join(parts)}.")
    return sentences


def overview(sections):
    """{rival: (wins, losses, mixed)}: titles of tables with how much, over all sections."""
    found = {}
    for section in sections.values():
        for table, rival, factors in section.comparisons():
            wins, losses, mixed = found.setdefault(rival, ([], [], []))
            title = section.tables[table].title
            if min(factors.values()) > LEVEL:
                wins.append(f"{title} ({_range(factors.values())})")
            elif max(factors.values()) < 1 / LEVEL:
                losses.append(f"{title} ({_range([1 / factor for factor in factors.values()])})")
            else:
                mixed.append(f"{title} ({_extremes(factors)})")
    return found
