"""The list of strategies, read from the classes themselves: parameters, what each is, and its paper."""

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

#: ``Authors, "Title", venue and year (arXiv:number)``, as it stands in a module's second paragraph.
PAPER = re.compile(
    r'^(?P<authors>.+?), "(?P<title>[^"]+)", (?P<where>[^,:;.]*?\d{4})(?P<arxiv> \(arXiv:[\d.]+\))?[,:;.]'
)


class Entry(NamedTuple):
    """One strategy.

    Attributes
    ----------
    name, about, paper : str
    parameters : dict of str to str
        Its own (SGD's, or those of FedAvg, are said once), with their defaults as Python writes them.
    """

    name: str
    parameters: dict[str, str]
    about: str
    paper: str


def client_entries() -> Iterator[Entry]:
    """Describe the client strategies, SGD first."""
    for name in sorted(clients.__all__, key=lambda name: (name != "SGD", name.lower())):
        cls: Any = getattr(clients, name)
        if isinstance(cls, type) and issubclass(cls, ClientStrategy) and cls is not ClientStrategy:
            base = {f.name: f.default for f in fields(SGD)} if cls is not SGD else {}
            own = {f.name: repr(f.default) for f in fields(cls) if f.name not in base or base[f.name] != f.default}
            yield Entry(name, own, *_words(cls))


def server_entries() -> Iterator[Entry]:
    """Describe the server strategies, FedAvg first."""
    for name in sorted(servers.__all__, key=lambda name: (name != "FedAvg", name.lower())):
        cls = getattr(servers, name)
        given = (
            {"seed", "server_hooks"} if cls is servers.FedAvg else inspect.signature(servers.FedAvg.__init__).parameters
        )
        parameters = inspect.signature(cls.__init__).parameters.values()
        own = {p.name: repr(p.default) for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in given}
        yield Entry(name, own, *_words(cls))


def _words(cls: type) -> tuple[str, str]:
    about = " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())
    paragraphs = (sys.modules[cls.__module__].__doc__ or "").split("\n\n")
    found = PAPER.match(" ".join(paragraphs[1].split())) if len(paragraphs) > 1 else None
    if not found:
        return about, ""
    authors = re.split(r", | and ", found["authors"])
    short = authors[0] + (" et al." if len(authors) > 2 else f" and {authors[1]}" if len(authors) == 2 else "")
    return about, f'{short}, "{found["title"]}", {found["where"]}{found["arxiv"] or ""}'


def catalogue() -> str:
    """Return all of it as text for a terminal."""
    lines = []
    for title, entries in (
        ("Client strategies; all but SGD take SGD's parameters too", client_entries()),
        ("Server strategies; all take those of Flower's FedAvg too. Flower's own are module:Class", server_entries()),
    ):
        lines += [title, "=" * len(title), ""]
        for entry in entries:
            call = ", ".join(f"{name}={default}" for name, default in entry.parameters.items())
            lines.append(f"{entry.name}({call})")
            for text in filter(None, (entry.about, entry.paper)):
                lines += textwrap.wrap(
                    text.replace("``", "").replace("`", ""), 96, initial_indent="    ", subsequent_indent="    "
                )
            lines.append("")
    return "\n".join(lines)
