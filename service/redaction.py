"""Takes out of a text what no answer and no log line may hold: tokens, and paths of this machine.

Paths that a caller sent are theirs and stay in the messages about them. What other programs say in
their errors goes through here.
"""

from __future__ import annotations

import re

__all__ = ["without_paths", "without_tokens"]

_TOKEN = re.compile(r"\b(mics_[0-9a-f]{8})_[\w-]+")

# Two parts at least, so that a lone slash between words is none. An address of a web page or of the
# API keeps its path: its slashes follow a host, or it is one of ours.
_PATH = re.compile(r"(?<![\w.:/~-])~?(?!/api/v\d)(?:/[\w.@+=-]+){2,}/?")


def without_tokens(text: str) -> str:
    """Return `text` with the secret part of every token left out; its id stays."""
    return _TOKEN.sub(r"\1_…", text)


def without_paths(text: str) -> str:
    """Return `text` with every absolute path reduced to its last part."""
    return _PATH.sub(lambda found: "…/" + found[0].rstrip("/").rpartition("/")[2], text)
