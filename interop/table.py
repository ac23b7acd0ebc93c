#!/usr/bin/env python3
"""Prints the table client x scenario as Markdown, from the result files of the interop suites.

usage: table.py FILE...      one file per client, named after it (pika.txt, lapin.out, ...), holding its stdout
A scenario is `ok`, `-` (skipped) or `FAIL`; a scenario that a client did not report at all is an empty cell.
Exit code 1 if there is a FAIL or an empty cell.
"""
import pathlib
import re
import sys

LINE = re.compile(r"^(ok|not ok|skip) (\d\d) (\w+)(?:: (.*))?$")
CELL = {"ok": "ok", "not ok": "FAIL", "skip": "-"}


def read(path):
    results = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        m = LINE.match(line)
        if m:
            results[(m[2], m[3])] = (m[1], m[4] or "")
    return results


def main(paths):
    if not paths:
        sys.exit(__doc__.strip())
    clients = {p.stem: read(p) for p in map(pathlib.Path, paths)}
    scenarios = sorted({s for r in clients.values() for s in r})
    if not scenarios:
        sys.exit("no results in " + ", ".join(paths))
    rows = [["", "scenario", *clients]]
    good = True
    for s in scenarios:
        cells = [CELL[r[s][0]] if s in r else "" for r in clients.values()]
        good &= "FAIL" not in cells and "" not in cells
        rows.append([s[0], s[1], *cells])
    totals = [sum(v[0] == "ok" for v in r.values()) for r in clients.values()]
    rows.append(["", "ok of " + str(len(scenarios)), *map(str, totals)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for i, row in enumerate(rows):
        print("| " + " | ".join(c.ljust(w) for c, w in zip(row, widths)) + " |")
        if i == 0:
            print("|" + "|".join("-" * (w + 2) for w in widths) + "|")
    reasons = {}
    for name, r in clients.items():
        for s, (verdict, why) in r.items():
            if verdict != "ok":
                reasons.setdefault((s, CELL[verdict], why), []).append(name)
    if reasons:
        print()
    for (s, cell, why), names in sorted(reasons.items()):
        cell = "skipped" if cell == "-" else cell
        print(f"- {cell} {s[0]} {s[1]} ({', '.join(names)}): {why}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
