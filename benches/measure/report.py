"""Turns the raw figures into docs/benchmarks.md; every sentence about who wins is computed from them."""

import statistics

HEAD = """# Benchmarks

Made by `make bench`; not edited by hand. Each figure is the median of its repeats, with the smallest and the largest
in brackets. The figures as measured are in benches/raw/, the programs in benches/.
"""

WORDS = {
    "plain": "loop on a plain file",
    "thinsnap": "thinsnap",
    "qcow2": "qcow2 by qemu-storage-daemon",
}


def write(records):
    """The document."""
    parts = [HEAD]
    if records:
        parts.append(_machine(next(iter(records.values()))))
    writers = {"first-write": _first_write, "prepare": _prepare, "device-io": _device_io}
    parts.extend(writers[name](records[name]) for name in writers if name in records)
    return "\n".join(parts)


def _machine(record):
    lines = ["## Machine", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in record["facts"].items()]
    return "\n".join(lines) + "\n"


def _made(record):
    options = ", ".join(f"{name} {value}" for name, value in record["options"].items())
    command, noise = ("bench-quick", "; few repeats: expect noise") if record["quick"] else ("bench", "")
    return f"`make {command}`, {record['when']}; {options}{noise}."


def _number(value):
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _spread(values, unit=""):
    if len(values) == 1:
        return f"{_number(values[0])}{unit}"
    return f"{_number(statistics.median(values))}{unit} ({_number(min(values))}–{_number(max(values))})"


def _bytes(values):
    value = statistics.median(values)
    for unit in ["B", "KiB", "MiB", "GiB"]:
        if value < 1024 or unit == "GiB":
            return f"{_number(value) if unit != 'B' else int(value)} {unit}"
        value /= 1024


def _first_write(record):
    rows = record["results"]
    stacks = list(dict.fromkeys(row["stack"] for row in rows))
    lines = [
        "## The first change of a large file in a fresh container", "",
        "4 KiB in the middle of the file are overwritten: open, write, fsync, in a container that has not written",
        "anything yet. Each stack stands alone on a preallocated disk (a loop device with direct I/O), so the bytes written",
        "to that disk until all is quiet are its own. Cold: caches dropped before. Warm: the 4 KiB have been read before,",
        "through the same mount.", "", _made(record), ""]
    for cache in ["cold", "warm"]:
        lines += [f"| {cache}: file size | " + " | ".join(stacks) + " |", "|---" * (len(stacks) + 1) + "|"]
        for size in dict.fromkeys(row["file_mib"] for row in rows):
            cells = []
            for stack in stacks:
                row = _find(rows, stack=stack, file_mib=size, cache=cache)
                cells.append(f"{_spread(row['ms'], ' ms')}, {_bytes(row['written'])} written")
            lines.append(f"| {size:,} MiB | " + " | ".join(cells) + " |")
        lines.append("")
    largest = max(row["file_mib"] for row in rows)
    for cache in ["cold", "warm"]:
        ours = statistics.median(_find(rows, stack="thinsnap", file_mib=largest, cache=cache)["ms"])
        small = statistics.median(_find(rows, stack="thinsnap", file_mib=1, cache=cache)["ms"])
        sentences = [f"{cache.capitalize()}, {largest:,} MiB: thinsnap takes {_number(ours)} ms"]
        for stack in stacks:
            if stack != "thinsnap":
                theirs = statistics.median(_find(rows, stack=stack, file_mib=largest, cache=cache)["ms"])
                word = "ahead of" if ours < theirs else "behind"
                sentences.append(f"{_number(max(ours, theirs) / min(ours, theirs))}× {word} {stack}")
        flat = f"it takes {_number(ours / small)}× what it takes in 1 MiB"
        lines.append(f"- {', '.join(sentences)}; {flat}.")
    return "\n".join(lines) + "\n"


def _prepare(record):
    rows, reads = record["results"]["prepare"], record["results"]["reads"]
    lines = [
        "## Prepare and mount, at several depths of a chain", "",
        "Through containerd's gRPC service, one call after the other; the file system is ext4. Each layer of the chain has a",
        "small file of its own; the file that is read stands in the first.", "", _made(record), "",
        "| depth | prepare, p50 | p99 | prepare + mount, p50 | p99 | remove, p50 | p99 |", "|---" * 7 + "|"]
    for row in rows:
        cells = [row[name][part] for name in ["prepare_ms", "prepare_and_mount_ms", "remove_ms"] for part in ["p50", "p99"]]
        lines.append(f"| {row['depth']} | " + " | ".join(f"{_number(cell)} ms" for cell in cells) + " |")
    lines += ["", "| depth | 4 KiB random reads, QD32, of the file in the first layer |", "|---|---|"]
    lines += [f"| {row['depth']} | {_spread(row['iops'])} IOPS |" for row in reads]
    first, last = rows[0], rows[-1]
    both = [row["prepare_and_mount_ms"]["p50"] for row in (first, last)]
    iops = [statistics.median(row["iops"]) for row in (reads[0], reads[-1])]
    aim = "met" if both[0] <= 5 else "missed"
    lines += [
        "", f"- Prepare + mount at depth {first['depth']}: {_number(both[0])} ms; the aim of 5 ms is {aim}.",
        f"- At depth {last['depth']} it costs {_number(both[1] / both[0])}× that (aim: at most 1.5×), "
        f"and reads run at {_number(iops[1] / iops[0])}× the speed of depth {reads[0]['depth']}."]
    return "\n".join(lines) + "\n"


def _device_io(record):
    rows = record["results"]
    jobs = list(dict.fromkeys(row["job"] for row in rows))
    stacks = list(dict.fromkeys(row["stack"] for row in rows))
    lines = [
        "## Input and output of the exported device", "",
        "fio on the block device, no file system; jobs in benches/fio/. All three end in a loop device with direct I/O: on a",
        "preallocated file, on thinsnap's FUSE file, on the FUSE export of a qcow2 with 64 KiB clusters. The region is",
        "written once before; the three take turns within each repeat. 4k: IOPS; 1m: MiB/s.", "", _made(record), "",
        "| job | " + " | ".join(WORDS[stack] for stack in stacks) + " | thinsnap ÷ plain | thinsnap ÷ qcow2 |",
        "|---" * (len(stacks) + 3) + "|"]
    wins, losses, to_plain = [], [], {}
    for job in jobs:
        values = {stack: _find(rows, job=job, stack=stack)["value"] for stack in stacks}
        middle = {stack: statistics.median(values[stack]) for stack in stacks}
        lines.append(
            f"| {job} | " + " | ".join(_spread(values[stack]) for stack in stacks)
            + f" | {middle['thinsnap'] / middle['plain']:.2f} | {middle['thinsnap'] / middle['qcow2']:.2f} |")
        (wins if middle["thinsnap"] > middle["qcow2"] else losses).append(job)
        to_plain[job] = middle["thinsnap"] / middle["plain"]
    lines.append("")
    if wins:
        lines.append(f"- Ahead of qcow2 in {len(wins)} of {len(jobs)} rows: {', '.join(wins)}.")
    if losses:
        lines.append(f"- Behind qcow2 in {len(losses)} of {len(jobs)} rows: {', '.join(losses)}.")
    slower = [job for job, ratio in to_plain.items() if ratio < 1]
    if slower:
        lines.append(
            f"- Behind a loop device on a plain file in {len(slower)} of {len(jobs)} rows: {', '.join(slower)}. That is what the way"
            " through a process in user space costs: each request crosses from the loop device to the process and back.")
    return "\n".join(lines) + "\n"


def _find(rows, **wanted):
    return next(row for row in rows if all(row[name] == value for name, value in wanted.items()))
