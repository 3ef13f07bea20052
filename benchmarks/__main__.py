"""Measure the bars and the curves; write results.json, and the tables and the plot of docs/performance.md."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentDefaultsHelpFormatter
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import curves, engines, products, profile, servers, splits
from benchmarks.bars import BARS
from benchmarks.measure import ROOT, machine
from fedsim.cli.guard import Parser, guard
from fedsim.errors import FedsimError
from fedsim.files import write_whole

RESULTS = ROOT / "benchmarks" / "results.json"
PAGE = ROOT / "docs" / "performance.md"
PLOT = ROOT / "docs" / "images" / "performance.png"
BEGIN, END = "<!-- written by python -m benchmarks -->\n", "<!-- end of what it writes -->\n"
#: Section of the results -> the function that measures it.
SECTIONS: dict[str, Callable[[int], Any]] = {
    "profile": profile.measure,
    "products": products.measure,
    "servers": servers.measure,
    "splits": splits.measure,
    "engines": engines.measure,
}


def main() -> None:
    """Run the command."""
    parser = Parser(prog="python -m benchmarks", description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    names = [*BARS, *SECTIONS, *curves.CURVES, curves.MEMORY]
    parser.add_argument("--only", metavar="NAME", choices=names, action="append", help=", ".join(names))
    parser.add_argument("--samples", type=int, default=15, help="samples of each figure, of which the median is taken")
    parser.add_argument("--json", action="store_true", help="print JSON and write nothing")
    args = parser.parse_args()
    if args.samples < 1:
        raise FedsimError(f"--samples is {args.samples}; allowed: 1 or more")

    found: dict[str, Any] = {"machine": machine(), "bars": []} | {part: {} for part in (*SECTIONS, "curves")}
    for name in args.only or names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        if name in BARS:
            found["bars"] += [{"name": name, **measured.as_dict()} for measured in BARS[name](args.samples)]
        elif name in SECTIONS:
            found[name] = SECTIONS[name](args.samples)
        else:
            found["curves"][name] = curves.measure(name, args.samples)
    if args.json:
        print(json.dumps(found, indent=1))
        return
    print(tables(found))
    if args.only:
        print("A part of the benchmarks; nothing is written.")
        return
    write_whole(RESULTS, lambda stream: stream.write(json.dumps(found, indent=1).encode() + b"\n"))
    curves.plot(found["curves"], PLOT)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    page = f"{before}{BEGIN}\n{tables(found)}\n{END}{after}"
    write_whole(PAGE, lambda stream: stream.write(page.encode()))
    print(f"wrote {RESULTS}, {PLOT} and the tables of {PAGE}")


def tables(found: dict[str, Any]) -> str:
    """Return the results as Markdown tables, under a line that describes the machine."""
    about = found["machine"]
    versions = ", ".join(f"{name} {about[name]}" for name in ("python", "numpy", "numba", "flwr", "ray"))
    lines = [
        f"{about['processor']}, {about['cores']} cores, vectors of {about['vector_bytes']} bytes, {about['system']}; "
        f"{versions}."
    ]
    parts = list(next(iter(found["profile"].values()), ()))
    lines += table("what | median | quartiles | bar | met", {bar["what"]: _bar_cells(bar) for bar in found["bars"]})
    lines += table(
        f"ms of a round on one thread | {' | '.join(parts)}",
        {job: " | ".join(f"{1e3 * t[part]:.2f}" for part in parts) for job, t in found["profile"].items()},
    )
    lines += table(
        "a batch of 10 through the 2NN, one thread | microseconds | of one thread's sgemm",
        {name: f"{1e6 * t['seconds']:.1f} | {100 * t['share']:.0f} %" for name, t in found["products"].items()},
    )
    servers_ms = {name: (1e3 * t["fedsim"], 1e3 * t["Flower"]) for name, t in found["servers"].items()}
    lines += table(
        "ms of a round of 100 clients, by server strategy | fedsim's | Flower's | ratio",
        {name: f"{ours:.1f} | {theirs:.1f} | {theirs / ours:.1f} x" for name, (ours, theirs) in servers_ms.items()},
    )
    lines += table(
        "10 million labels into 100,000 clients | seconds",
        {f"`{name}`": f"{seconds:.1f}" for name, seconds in found["splits"].items()},
    )
    besides = {name: f"{t['besides']:.1f}" if t["besides"] else "" for name, t in found["engines"].items()}
    lines += table(
        "engine | rounds per second | seconds besides its rounds",
        {name: f"{1 / t['round']:.3g} | {besides[name]}" for name, t in found["engines"].items()},
    )
    return "\n".join(lines) + "\n"


def table(header: str, rows: Mapping[str, str]) -> list[str]:
    """Return the lines of a Markdown table after an empty line; rows are first cell -> other cells."""
    if not rows:
        return []
    rule = "| --- " * (header.count(" | ") + 1) + "|"
    return ["", f"| {header} |", rule, *(f"| {first} | {others} |" for first, others in rows.items())]


def _bar_cells(bar: dict[str, Any]) -> str:
    unit, _, at_most = bar["unit"].partition(" ")
    value, low, high = (f"{bar[key]:.3g} {unit}" for key in ("value", "low", "high"))
    limit, met = "", ""
    if bar["bar"] is not None:
        limit, met = f"{at_most or 'at least'} {bar['bar']:.3g} {unit}", "yes" if bar["met"] else "**no**"
    return f"{value} | {low} to {high} | {limit} | {met}"


if __name__ == "__main__":
    guard(main)
