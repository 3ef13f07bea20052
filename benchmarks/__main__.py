"""Measure the bars and the curves; write results.json, and the table and picture of docs/performance.md."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentDefaultsHelpFormatter
from typing import Any

from benchmarks import engines, products, profile, servers, splits
from benchmarks.bars import BARS
from benchmarks.curves import CURVES, MEMORY, measure, memory, plot
from benchmarks.measure import ROOT, machine
from fedsim.cli.guard import Parser, guard
from fedsim.errors import FedsimError
from fedsim.files import write_whole

RESULTS = ROOT / "benchmarks" / "results.json"
PAGE = ROOT / "docs" / "performance.md"
PICTURE = ROOT / "docs" / "images" / "performance.png"
BEGIN, END = "<!-- written by python -m benchmarks -->\n", "<!-- end of what it writes -->\n"


def main() -> None:
    """Run the command."""
    parser = Parser(prog="python -m benchmarks", description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    names = [*BARS, "profile", "products", "servers", "splits", "engines", *CURVES, MEMORY]
    parser.add_argument("--only", metavar="NAME", choices=names, action="append", help=", ".join(names))
    parser.add_argument("--samples", type=int, default=15, help="of each figure; its median counts")
    parser.add_argument("--json", action="store_true", help="print JSON and write nothing")
    args = parser.parse_args()
    if args.samples < 1:
        raise FedsimError(f"--samples is {args.samples}; allowed: 1 or more")

    parts = ("profile", "products", "servers", "splits", "engines", "curves")
    found: dict[str, Any] = {"machine": machine(), "bars": []} | {part: {} for part in parts}
    for name in args.only or names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        if name in BARS:
            found["bars"] += [{"name": name, **measured.as_dict()} for measured in BARS[name](args.samples)]
        elif name == "profile":
            found[name] = {what: profile.measure(job, args.samples) for what, job in profile.JOBS.items()}
        elif name == "products":
            found[name] = products.measure(args.samples)
        elif name == "servers":
            found[name] = servers.measure(args.samples)
        elif name == "splits":
            found[name] = splits.measure(args.samples)
        elif name == "engines":
            found[name] = engines.measure(args.samples)
        else:
            found["curves"][name] = memory(args.samples) if name == MEMORY else measure(name, args.samples)
    if args.json:
        print(json.dumps(found, indent=1))
        return
    print(table(found))
    if args.only:
        print("A part of the benchmarks; nothing is written.")
        return
    write_whole(RESULTS, lambda stream: stream.write(json.dumps(found, indent=1).encode() + b"\n"))
    plot(found["curves"], PICTURE)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    page = f"{before}{BEGIN}\n{table(found)}\n{END}{after}"
    write_whole(PAGE, lambda stream: stream.write(page.encode()))
    print(f"wrote {RESULTS}, {PICTURE} and the table of {PAGE}")


def table(found: dict[str, Any]) -> str:
    """Return the bars as a Markdown table, under a line that describes the machine."""
    about = found["machine"]
    versions = ", ".join(f"{name} {about[name]}" for name in ("python", "numpy", "numba", "flwr", "ray"))
    lines = [
        f"{about['processor']}, {about['cores']} cores, vectors of {about['vector_bytes']} bytes, {about['system']}; "
        f"{versions}."
    ]
    if found["bars"]:
        lines += ["", "| what | median | quartiles | bar | met |", "| --- | --- | --- | --- | --- |"]
    for bar in found["bars"]:
        sign, _, most = bar["unit"].partition(" ")

        def show(value: float, sign: str = sign) -> str:
            return f"{value:.3g} {sign}"

        wanted = "" if bar["bar"] is None else f"{most or 'at least'} {show(bar['bar'])}"
        met = "" if bar["bar"] is None else "yes" if bar["met"] else "**no**"
        spread = f"{show(bar['low'])} to {show(bar['high'])}"
        lines.append(f"| {bar['what']} | {show(bar['value'])} | {spread} | {wanted} | {met} |")
    if found["profile"]:
        parts = list(next(iter(found["profile"].values())))
        lines += ["", f"| ms of a round on one thread | {' | '.join(parts)} |", "| --- " * (len(parts) + 1) + "|"]
        for what, seconds in found["profile"].items():
            lines.append(f"| {what} | {' | '.join(f'{1e3 * seconds[part]:.2f}' for part in parts)} |")
    if found["products"]:
        lines += ["", "| a batch of 10 through the 2NN, one thread | microseconds | of one thread's sgemm |"]
        lines.append("| --- | --- | --- |")
        for name, taken in found["products"].items():
            lines.append(f"| {name} | {1e6 * taken['seconds']:.1f} | {100 * taken['share']:.0f} % |")
    if found["servers"]:
        lines += ["", "| ms of a round of 100 clients, by server strategy | fedsim's | Flower's | ratio |"]
        lines.append("| --- | --- | --- | --- |")
        for name, taken in found["servers"].items():
            ours, theirs = 1e3 * taken["fedsim"], 1e3 * taken["Flower"]
            lines.append(f"| {name} | {ours:.1f} | {theirs:.1f} | {theirs / ours:.1f} x |")
    if found["splits"]:
        lines += ["", "| 10 million labels into 100,000 clients | seconds |", "| --- | --- |"]
        lines += [f"| `{name}` | {seconds:.1f} |" for name, seconds in found["splits"].items()]
    if found["engines"]:
        lines += ["", "| engine | rounds per second | seconds besides its rounds |", "| --- | --- | --- |"]
        for name, taken in found["engines"].items():
            besides = f"{taken['besides']:.1f}" if taken["besides"] else ""
            lines.append(f"| {name} | {1 / taken['round']:.3g} | {besides} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    guard(main)
