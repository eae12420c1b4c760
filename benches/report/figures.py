"""Reads the figures as measured, and answers questions about them."""

import json
import statistics

THINSNAP = "thinsnap"
# The same, its devices shown otherwise than it chooses on that kernel.
UBLK = f"{THINSNAP}, ublk"
OURS = (THINSNAP, UBLK)
# Less than this apart is level.
LEVEL = 1.05


class Section:
    """What one section measured, with the words that its module has about it."""

    def __init__(self, module, record):
        self.title, self.about, self.tables = module.TITLE, module.ABOUT, module.TABLES
        self.name = record["section"]
        self.record = record
        self._cells = {(cell["table"], cell["row"], cell["stack"]): cell for cell in record["results"]}

    def rows(self, table):
        """Rows of a table, in the order of measuring; those with a number by their number."""
        cells = [cell for (name, _, _), cell in self._cells.items() if name == table]
        if self.tables[table].x:
            cells.sort(key=lambda cell: cell["x"])
        return list(dict.fromkeys(cell["row"] for cell in cells))

    def stacks(self, table):
        """Columns of a table, in the order of measuring."""
        return list(dict.fromkeys(stack for name, _, stack in self._cells if name == table))

    def cell(self, table, row, stack):
        """{values, x, bins}, or None."""
        return self._cells.get((table, row, stack))

    def median(self, table, row, stack):
        """Median of the values; None if there are none."""
        cell = self.cell(table, row, stack)
        return statistics.median(cell["values"]) if cell else None

    def ahead(self, table, row, rival, ours=THINSNAP):
        """How many times better thinsnap is (below 1: worse); None without both figures, or with a zero among them."""
        mine, theirs = self.median(table, row, ours), self.median(table, row, rival)
        if not mine or not theirs or mine < 0 or theirs < 0:
            return None
        return mine / theirs if self.tables[table].higher else theirs / mine

    def comparisons(self):
        """(table, rival, {row: times ahead}) for each table that compares stacks."""
        for table, words in self.tables.items():
            stacks = self.stacks(table)
            if words.columns != "stack" or THINSNAP not in stacks:
                continue
            for rival in stacks:
                factors = {row: self.ahead(table, row, rival) for row in self.rows(table)}
                factors = {row: factor for row, factor in factors.items() if factor is not None}
                if rival not in OURS and factors:
                    yield table, rival, factors


def load(raw, modules):
    """{section: Section} of what stands in a directory of raw figures, in the order of the modules."""
    found = {}
    for name, module in modules.items():
        file = raw / f"{name}.json"
        if file.exists():
            found[name] = Section(module, json.loads(file.read_text(encoding="utf-8")))
    return found


def percentile(values, part):
    """The value below which `part` percent of the values are."""
    return sorted(values)[min(len(values) * part // 100, len(values) - 1)]


def number(value):
    """Three figures, or all before the point."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3g}"


def quantity(value, unit):
    """A value with its unit; bytes in the unit that suits them, long times in seconds."""
    if unit == "bytes":
        for name in ["B", "KiB", "MiB", "GiB"]:
            if abs(value) < 1024 or name == "GiB":
                return f"{number(value) if name != 'B' else int(value)} {name}"
            value /= 1024
    if unit == "ms" and value >= 10_000:
        return f"{number(value / 1000)} s"
    return f"{number(value)} {unit}"


def times(factor):
    """`2.1×`, or a range of them."""
    return f"{number(factor)}×"
