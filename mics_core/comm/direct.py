"""Collectives of the workers of one node on the host: each sends to each other directly.

gloo's own pass everything through a ring and through buffers of their own. Between processes of one
machine no link is spared by that, and it costs processor time, which the workers compute with:
docs/log.md, "Collectives inside a node". Here a tensor goes from where it lies to where it belongs.

All members must call the same functions in the same order, from one thread each. A member that is
lost, or does not answer within the process group's time limit, raises `RuntimeError`, as gloo's
collectives do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

__all__ = ["backend_of", "exchange_directly", "gather_directly"]

_Rows = Sequence[torch.Tensor] | torch.Tensor


def backend_of(group: dist.ProcessGroup) -> Any:
    """Return the `dist.ProcessGroupGloo` of a group (torch's stubs leave out what it can do)."""
    return group._get_backend(torch.device("cpu"))


def gather_directly(rows: _Rows, mine: torch.Tensor, backend: Any) -> None:
    """Gather a vector of each member.

    Args:
        rows: Where they go, by rank: contiguous, (n) each.
        mine: This member's (n); it may be its row already.
        backend: The members' `dist.ProcessGroupGloo`.
    """
    rank = backend.rank()
    exchange_directly(rows, [mine] * len(rows), backend)
    if rows[rank].data_ptr() != mine.data_ptr():
        rows[rank].copy_(mine)


def exchange_directly(received: _Rows, rows: _Rows, backend: Any) -> None:
    """Send each other member its row; what is this member's own stays where it is.

    Args:
        received: Where the others' go, by rank: contiguous, (n) each; nothing is put into this
            member's own.
        rows: One for each member, by rank: contiguous, (n) each.
        backend: The members' `dist.ProcessGroupGloo`.
    """
    # Without a limit of its own a wait would take the one that the group was built with.
    rank, limit = backend.rank(), backend.options._timeout
    others = [other for other in range(backend.size()) if other != rank]
    works = [backend.recv([received[other]], other, 0) for other in others]
    works += [backend.send([rows[other]], other, 0) for other in others]
    for work in works:
        work.wait(limit)
