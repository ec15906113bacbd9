"""Takes out of a text what no answer and no log line may hold: tokens, and paths of this machine.

Paths that a caller sent are theirs and stay in the messages about them. What other programs say in
their errors goes through here.
"""

from __future__ import annotations

import re

__all__ = ["without_paths", "without_tokens"]

_TOKEN = re.compile(r"\b(mics_[0-9a-f]{8})_[\w-]+")

# A part of a path; what ends one here is what people put around paths. Only a path in quotes may
# have spaces, or one that goes on with a slash behind them.
_PART = r"""[^\s/'"`,;:()\[\]{}<>|]+"""

# Our own routes are no paths of a machine.
_NO_ROUTE = r"(?!/(?:api/v\d+(?![\w.-])|(?:docs|healthz|readyz|metrics|openapi\.json)(?![\w/-])))"

# An address of a web page keeps its path, whose slashes follow a host: `http://host/path`. A path
# behind a colon has one slash, or three where it is an address without a host: `file:///path`.
_PATH = re.compile(
    rf"""(?P<quote>['"`])~?{_NO_ROUTE}(?P<quoted>/[^\s'"`][^'"`\n]*)(?P=quote)"""
    rf"""|(?:(?<=:)(?:/{{2}}(?=/)|(?=/[^/]))|(?<![\w.:/~<-])~?){_NO_ROUTE}"""
    rf"""(?P<plain>(?:/+{_PART})+(?:[ ]{_PART}(?:/+{_PART})+)*/*)"""
)


def without_tokens(text: str) -> str:
    """Return `text` with the secret part of every token left out; its id stays."""
    return _TOKEN.sub(r"\1_…", text)


def without_paths(text: str) -> str:
    """Return `text` with every absolute path reduced to its last part, if it has several."""
    return _PATH.sub(_last_part, text)


def _last_part(found: re.Match[str]) -> str:
    quote = found["quote"] or ""
    path = found["quoted"] or found["plain"]
    shown = path.rstrip("/.!?")
    parents, _, name = shown.rpartition("/")
    end = path[len(shown) :].lstrip("/")
    return f"{quote}…{'/' + name if parents.strip('/') else ''}{end}{quote}"
