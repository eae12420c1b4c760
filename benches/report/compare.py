"""Sets new figures beside older ones, as ratios: thinsnap's, and those of who shows how fast the machine was."""

import math

from .figures import THINSNAP, number

# Who stands for the machine, the first that both runs have.
MEASURES = ["plain loop file", "overlayfs on ext4"]


def text(new, old):
    """A line for each row that both have. A ratio above 1 is better now; `machine` is the same ratio of a stack that is not
    ours, and the last column is what is left of the change when the machine's is taken out."""
    lines = []
    for name, section in new.items():
        if name not in old:
            continue
        before = old[name]
        sizes = {section.record["size"], before.record["size"]}
        note = f" (sizes differ: {', '.join(sorted(sizes))})" if len(sizes) > 1 else ""
        lines += ["", f"{name}: {before.record['when']} -> {section.record['when']}{note}"]
        lines.append(f"  {'':58} {'before':>10} {'now':>10} {'ratio':>7} {'machine':>8} {'left':>7}")
        lines += _rows(section, before)
    return "\n".join(lines).lstrip("\n") or "no section was measured in both"


def _rows(section, before):
    lines, changes = [], []
    for table, about in section.tables.items():
        ours = [THINSNAP] if about.columns == "stack" else section.stacks(table)
        for row in section.rows(table):
            for stack in ours:
                ratio = _ratio(section, before, table, row, stack)
                if ratio is None:
                    continue
                measure = [_ratio(section, before, table, row, other) for other in MEASURES]
                machine = next((other for other in measure if other), None)
                what = f"{about.title}: {row}" if about.columns == "stack" else f"{about.title}: {row}, {stack}"
                left = ratio / machine if machine else ratio
                changes.append(left)
                lines.append(
                    f"  {what[:58]:58} {number(before.median(table, row, stack)):>10} {number(section.median(table, row, stack)):>10}"
                    f" {ratio:7.2f} {f'{machine:.2f}' if machine else '':>8} {left:7.2f}")
    if changes:
        middle = math.exp(sum(map(math.log, changes)) / len(changes))
        lines.append(f"  {'geometric mean':58} {'':>10} {'':>10} {'':>7} {'':>8} {middle:7.2f}")
    return lines


def _ratio(section, before, table, row, stack):
    now, then = section.median(table, row, stack), before.median(table, row, stack)
    if not now or not then or now < 0 or then < 0:
        return None
    return now / then if section.tables[table].higher else then / now
