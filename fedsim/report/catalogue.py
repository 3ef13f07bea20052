"""The list of strategies with their parameters, descriptions and papers, read from the classes."""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, NamedTuple

from fedsim import clients, servers
from fedsim.clients import SGD, ClientStrategy

#: ``Authors, "Title", venue and year (arXiv:number)``, in the second paragraph of a module's docstring.
PAPER = re.compile(
    r'^(?P<authors>.+?), "(?P<title>[^"]+)", (?P<where>[^,:;.]*?\d{4})(?P<arxiv> \(arXiv:[\d.]+\))?[,:;.]'
)


class Entry(NamedTuple):
    """One strategy.

    Attributes
    ----------
    name : str
    parameters : dict of str to str
        Parameter -> repr of its default, without those that SGD or FedAvg has too.
    description, paper : str
    """

    name: str
    parameters: dict[str, str]
    description: str
    paper: str


def client_entries() -> Iterator[Entry]:
    """Describe the client strategies, SGD first."""
    for name in sorted(clients.__all__, key=lambda name: (name != "SGD", name.lower())):
        cls: Any = getattr(clients, name)
        if isinstance(cls, type) and issubclass(cls, ClientStrategy) and cls is not ClientStrategy:
            base = {f.name: f.default for f in fields(SGD)} if cls is not SGD else {}
            own = {f.name: repr(f.default) for f in fields(cls) if f.name not in base or base[f.name] != f.default}
            yield Entry(name, own, *_describe(cls))


def server_entries() -> Iterator[Entry]:
    """Describe the server strategies, FedAvg first."""
    fedavg = inspect.signature(servers.FedAvg.__init__).parameters
    for name in sorted(servers.__all__, key=lambda name: (name != "FedAvg", name.lower())):
        cls = getattr(servers, name)
        shared = {"seed", "server_hooks"} if cls is servers.FedAvg else fedavg
        parameters = inspect.signature(cls.__init__).parameters.values()
        own = {p.name: repr(p.default) for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in shared}
        yield Entry(name, own, *_describe(cls))


def _describe(cls: type) -> tuple[str, str]:
    """Return the description of a class, and its paper."""
    description = " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())
    paragraphs = (sys.modules[cls.__module__].__doc__ or "").split("\n\n")
    found = PAPER.match(" ".join(paragraphs[1].split())) if len(paragraphs) > 1 else None
    if not found:
        return description, ""
    authors = re.split(r", | and ", found["authors"])
    short = authors[0] + (" et al." if len(authors) > 2 else f" and {authors[1]}" if len(authors) == 2 else "")
    return description, f'{short}, "{found["title"]}", {found["where"]}{found["arxiv"] or ""}'


def catalogue() -> str:
    """Return the list as text for a terminal."""
    lines = []
    for title, entries in (
        ("Client strategies; all but SGD take SGD's parameters too", client_entries()),
        (
            "Server strategies; all take the parameters of Flower's FedAvg too. Flower's own are named module:Class",
            server_entries(),
        ),
    ):
        lines += [title, "=" * len(title), ""]
        for entry in entries:
            call = ", ".join(f"{name}={default}" for name, default in entry.parameters.items())
            lines.append(f"{entry.name}({call})")
            for text in filter(None, (entry.description, entry.paper)):
                lines.append(textwrap.indent(textwrap.fill(text.replace("`", ""), 92), "    "))
            lines.append("")
    return "\n".join(lines)
