"""The report, once as a list of blocks, then as Markdown and as an HTML page that needs nothing else."""

import re
from html import escape

from . import plot, words
from .aims import PLAIN, UBLK_SECTION, judged
from .figures import OURS, load, number, percentile, quantity, times

HEAD = """Made by `thinsnap bench` (`make bench`); not edited by hand. Each figure is the median of its repeats, with the smallest and
the largest in brackets, or with the 99th percentile where it says p99. Every stack stands on the same disk, alone on a
preallocated file there; caches are dropped before what is called cold; the stacks take turns. The figures as measured, and
fio's own words, are kept beside this report."""

UBLK_WORDS = """The last column is the same for devices that are shown by ublk, which thinsnap chooses from Linux 6.16 on: in a virtual
machine, since this machine's kernel may have none. Where every instruction is emulated, copying 1 MiB and each switch between
kernel and process cost far more beside the disk than they do, and times mean nothing."""

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:#222;background:#fff}
table{border-collapse:collapse;margin:1em 0;font-size:13px;display:block;overflow-x:auto}
th,td{border:1px solid #ccc;padding:3px 8px;text-align:left;vertical-align:top}th{background:#f3f3f3}
svg{width:100%;height:auto;margin:.5em 0 1.5em}svg text{font:12px system-ui,sans-serif;fill:#222}svg .small{font-size:10px}
code{background:#f3f3f3;padding:0 3px}.met{color:#1d7a3a}.missed{color:#b3261e}"""


def write(raw, out, modules):
    """Writes benchmarks.md and benchmarks.html into `out`; returns what was written and what it says, for programs."""
    sections = load(raw, modules)
    blocks = _blocks(sections)
    out.mkdir(parents=True, exist_ok=True)
    files = {out / "benchmarks.md": markdown(blocks), out / "benchmarks.html": html(blocks)}
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    return {
        "files": [str(path) for path in [*files, raw]],
        "aims": [{"aim": aim.words, "wanted": aim.aim, "found": value, "met": met} for aim, value, met in judged(sections)],
        "not_run": [
            {"section": section.name, **entry} for section in sections.values() for entry in section.record["not_run"]],
    }


def _blocks(sections):
    blocks = [("h1", "Benchmarks"), ("p", HEAD)]
    if not sections:
        return [*blocks, ("p", "Nothing has been measured yet.")]
    newest = max(sections.values(), key=lambda section: section.record["when"])
    facts = [[name, str(value)] for name, value in newest.record["facts"].items()]
    blocks += [("h2", "Machine"), ("table", ["", ""], facts)]
    blocks += [("h2", "Where thinsnap wins and where it loses"), *_overview(sections)]
    blocks += [("h2", "Aims"), *_aims(sections)]
    for section in sections.values():
        blocks += _section(section)
    return blocks


def _overview(sections):
    items = []
    for rival, (wins, losses, mixed) in words.overview(sections).items():
        for word, some in [("wins", wins), ("loses", losses), ("wins here and loses there, or is level", mixed)]:
            if some:
                items.append(f"Against {rival} it **{word}**: {'; '.join(some)}.")
    return [("ul", items or ["No rival was measured."])]


def _aims(sections):
    rows = []
    for aim, value, met in judged(sections):
        shown = _found(aim, value)
        limit = aim.limit and aim.section in sections and aim.limit(sections[aim.section])
        shown += f" ({PLAIN}: {times(limit)})" if limit else ""
        other = aim.over_ublk and UBLK_SECTION in sections and aim.over_ublk(sections[UBLK_SECTION])
        over = f"{_found(aim, other)}, {_verdict(aim.met(other))}" if other else ""
        rows.append([aim.words, aim.aim, shown, "not measured" if met is None else _verdict(met), over])
    met = sum(1 for row in rows if row[3] == "met")
    known = sum(1 for row in rows if row[3] != "not measured")
    return [
        ("p", f"{met} of {known} met on this machine. {UBLK_WORDS}"),
        ("table", ["what", "aim", "found", "", "over ublk, emulated"], rows)]


def _found(aim, value):
    return "" if value is None else times(value) if aim.unit == "×" else f"{number(value)} {aim.unit}"


def _verdict(met):
    return "met" if met else "**not met**"


def _section(section):
    record = section.record
    how = {"full": "thinsnap bench", "quick": "thinsnap bench --quick", "tiny": "thinsnap bench, at sizes that mean nothing"}
    noise = "; few repeats and small sizes: expect noise" if record["size"] == "quick" else ""
    options = _in_words(record["options"])
    blocks = [
        ("h2", section.title), ("p", section.about),
        ("p", f"`{how[record['size']]}`, section `{section.name}`, {record['when']}; {options}{noise}.")]
    for table in section.tables:
        if section.rows(table):
            blocks += [("h3", section.tables[table].title), _table(section, table), *_plots(section, table)]
    if sentences := words.of_section(section):
        blocks.append(("ul", sentences))
    if record["not_run"]:
        blocks.append(("table", ["not run", "why"], [
            [f"{entry['stack']}{entry['row'] and ', ' + entry['row']}", f"not run: {entry['why']}"] for entry in record["not_run"]]))
    return blocks


def _in_words(options):
    """A section's sizes; those of its parts in brackets."""
    return ", ".join(
        f"{name} ({_in_words(value)})" if isinstance(value, dict) else f"{name} {value}" for name, value in options.items())


def _table(section, table):
    about = section.tables[table]
    rows, stacks = section.rows(table), section.stacks(table)
    if len(stacks) > len(rows) + 1 and not about.baselines:
        lines = [[stack, *(_cell(section, table, row, stack) for row in rows)] for stack in stacks]
        return ("table", ["", *rows], lines)
    ratios = [(one, name) for one in OURS if one in stacks for name in about.baselines if name in stacks]
    lines = []
    for row in rows:
        line = [row, *(_cell(section, table, row, stack) for stack in stacks)]
        for one, name in ratios:
            mine, theirs = section.median(table, row, one), section.median(table, row, name)
            line.append(f"{mine / theirs:.2f}" if mine and theirs else "")
        lines.append(line)
    return ("table", [about.x, *stacks, *(f"{one} ÷ {name}" for one, name in ratios)], lines)


def _cell(section, table, row, stack):
    cell = section.cell(table, row, stack)
    if cell is None:
        return ""
    unit, values = section.tables[table].unit, cell["values"]
    shown = quantity(section.median(table, row, stack), unit)
    if len(values) == 1:
        return shown
    if section.tables[table].tail:
        return f"{shown} (p99 {quantity(percentile(values, 99), unit)})"
    if unit == "bytes" or (unit == "ms" and max(values) >= 10_000):
        return f"{shown} ({quantity(min(values), unit)}–{quantity(max(values), unit)})"
    return f"{shown} ({number(min(values))}–{number(max(values))})"


def _plots(section, table):
    about = section.tables[table]
    rows, stacks = section.rows(table), section.stacks(table)

    def value(row, stack):
        cell = section.cell(table, row, stack)
        if cell is None:
            return None
        middle = section.median(table, row, stack)
        return middle, min(cell["values"]), max(cell["values"]), quantity(middle, about.unit)

    if about.x and len(rows) > 1:
        series = {
            stack: [(section.cell(table, row, stack)["x"], section.median(table, row, stack)) for row in rows
                    if section.cell(table, row, stack)] for stack in stacks}
        plots = [plot.lines(about.title, about.unit, about.x, series)]
    else:
        plots = [plot.bars(about.title, about.unit, rows, stacks, value)]
    blocks = [("svg", text) for text in plots if text]
    for row in rows:
        bins = {stack: section.cell(table, row, stack)["bins"] for stack in stacks if section.cell(table, row, stack)}
        title = f"Latencies: {about.x} {row}" if about.x else f"Latencies: {row}"
        if text := plot.histogram(title, bins):
            blocks += [("h4", title), ("svg", text)]
    return blocks


def markdown(blocks):
    """The blocks as Markdown, without the plots."""
    parts = []
    for kind, *content in blocks:
        if kind in ("h1", "h2", "h3"):
            parts.append(f"{'#' * int(kind[1])} {content[0]}")
        elif kind == "p":
            parts.append(content[0])
        elif kind == "ul":
            parts.append("\n".join(f"- {item}" for item in content[0]))
        elif kind == "table":
            head, rows = content
            lines = [f"| {' | '.join(line)} |" for line in [head, *rows]]
            lines.insert(1, "|---" * len(head) + "|")
            parts.append("\n".join(re.sub(r" {2,}", " ", line) for line in lines))
    return "\n\n".join(parts) + "\n"


def html(blocks):
    """The blocks as one page; the plots are in it."""
    body = []
    for kind, *content in blocks:
        if kind in ("h1", "h2", "h3", "h4", "p"):
            body.append(f"<{kind}>{_inline(content[0])}</{kind}>")
        elif kind == "ul":
            body.append("<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in content[0]) + "</ul>")
        elif kind == "svg":
            body.append(content[0])
        else:
            head, rows = content
            body.append("<table><tr>" + "".join(f"<th>{_inline(cell)}</th>" for cell in head) + "</tr>")
            body += ["<tr>" + "".join(f"<td{_class(cell)}>{_inline(cell)}</td>" for cell in row) + "</tr>" for row in rows]
            body.append("</table>")
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/><title>thinsnap: benchmarks</title><style>{STYLE}</style></head>\n'
        "<body>\n" + "\n".join(body) + "\n</body></html>\n")


def _class(cell):
    return {"met": ' class="met"', "**not met**": ' class="missed"'}.get(cell, "")


def _inline(text):
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))
    return re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", text)
