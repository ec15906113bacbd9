"""Copies the model states to members that are behind, while the others train on.

[Note: joining without holding anyone up]
Some members of a generation hold the states of its first step s, others are behind: newcomers, and
a group that missed the end of the last step. Those that hold them keep a snapshot, each of its part
of the states, send it in the background over connections of their own, and train on. The snapshot
is taken in the background too, beside the forward and backward of step s, which only read the
states; the update at its end waits for it. And the sending leaves the links to the second hop
(`mics_core.engine.link_use`). A member that
is behind takes part in the exchanges of every step too, with no micro-batches and a gradient of
zero. So it receives the reduced gradient of each step; it keeps them, and when the snapshot is
there it applies them in order. That brings it to the bits of its peers. It says so in the summary
of the step that it can apply at once, and from the next one on it takes its share of micro-batches.
Where a copy takes longer than there is memory for gradients it says that in the summary too, and at
the end of that step all wait for the copy.

[Note: states are whole at any moment]
A group that is a step behind may soon be the only one that holds states at all, if those that send
it newer ones die. So it receives beside its own, in the host's memory, and its workers put the copy
in place together, once each has told the others in the vote of a step that its part is there. From
then on they apply the same kept gradients in the same step. So what they have is whole, of one step
or another, whenever the generation ends, and they go on from there. A newcomer has nothing to lose:
the copy goes straight to its place, which spares the memory.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import zip_longest

import torch

from mics_core.comm.copies import Copies
from mics_core.engine.link_use import LinkUse
from mics_core.errors import ReplicationError

__all__ = ["Incoming", "Outgoing"]

_UNDER_WAY_BYTES = 1 << 19
"""What all sources together have on the way to a member when a second hop begins, which waits for
it: the member's link carries both."""
_LEAST_PIECE_BYTES = 1 << 15
"""Each of them is a call."""


class Outgoing:
    """Sends this member's part of the states, as they are now.

    Whoever changes the states must call `wait_until_taken` first.

    Args:
        tensors: The states (`mics_core.engine.state.state_tensors`).
        copies: The connections.
        source: Which of the sources this is, from 0.
        num_sources: Members that hold the states.
        listeners: Ranks of the members that are behind.
        link_use: When to leave the links to the second hop.
        at_once: Indices of tensors that a forward may change: their snapshot is taken here.
    """

    def __init__(
        self,
        tensors: Sequence[torch.Tensor],
        copies: Copies,
        source: int,
        num_sources: int,
        listeners: Sequence[int],
        link_use: LinkUse,
        at_once: Collection[int] = (),
    ):
        self._copies = copies
        self._listeners = tuple(listeners)
        self._link_use = link_use
        self._is_closed = threading.Event()
        self._stream = _side_stream(tensors)
        pieces = list(_pieces_of(tensors, source, num_sources))
        early = {piece: _copy_of(tensors, piece) for piece in pieces if piece[0] in at_once}
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="copies-out")
        self._taken = thread.submit(self._take, tensors, pieces, early)
        thread.submit(self._send)
        thread.shutdown(wait=False)

    def wait_until_taken(self) -> None:
        """Wait until the states may change.

        Raises:
            RuntimeError: There is no memory for the snapshot.
        """
        self._taken.result()

    def close(self) -> None:
        """Send no more."""
        self._is_closed.set()
        self._copies.close()

    def _take(
        self,
        tensors: Sequence[torch.Tensor],
        pieces: Sequence[_Piece],
        early: dict[_Piece, torch.Tensor],
    ) -> deque[torch.Tensor]:
        snapshot: deque[torch.Tensor] = deque()
        with torch.cuda.stream(self._stream):
            for piece in pieces:
                if self._is_closed.is_set():
                    break
                taken = early.get(piece)
                snapshot.append(_copy_of(tensors, piece) if taken is None else taken)
        return snapshot

    def _send(self) -> None:
        try:
            snapshot = self._taken.result()
            while snapshot and not self._is_closed.is_set():
                self._link_use.wait_until_free()
                self._copies.send(snapshot.popleft(), self._listeners)
        except ReplicationError:
            return  # who was lost breaks the next step too, and that says so


class Incoming:
    """Receives the states.

    Args:
        tensors: The states, which `put_in_place` overwrites.
        copies: The connections.
        sources: Ranks of the members that hold them.
        beside: Whether the states must stay as they are until then; without, they are undefined.
    """

    def __init__(
        self,
        tensors: Sequence[torch.Tensor],
        copies: Copies,
        sources: Sequence[int],
        *,
        beside: bool = False,
    ):
        self._tensors = list(tensors)
        self._beside = beside
        self._rows: list[torch.Tensor] = []
        self._copies = copies
        self._sources = tuple(sources)
        self._lock = threading.Lock()
        self._is_closed = False
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="copies-in")
        self._received: Future[None] = thread.submit(self._receive)
        thread.shutdown(wait=False)

    @property
    def is_complete(self) -> bool:
        """Whether all is there.

        Raises:
            ReplicationError: A source was lost.
        """
        if not self._received.done():
            return False
        self._received.result()
        return True

    def is_over_within(self, limit_s: float) -> bool:
        """Wait for a while; return whether all is there, or a source was lost."""
        return bool(wait([self._received], limit_s).done)

    def wait(self) -> None:
        """Wait until all is there.

        Raises:
            ReplicationError: A source was lost.
        """
        self._received.result()

    def put_in_place(self) -> None:
        """Put what was received in the place of the states; all must be there."""
        for tensor, row in zip(self._tensors, self._rows, strict=True):
            if tensor.data_ptr() != row.data_ptr():
                tensor.detach().copy_(row.view(tensor.shape))
        self._rows = []

    def close(self) -> None:
        """Write no more into the states; what still arrives is thrown away."""
        with self._lock:
            self._is_closed = True
        self._copies.close()

    def _receive(self) -> None:
        number = len(self._sources)
        parts = [_pieces_of(self._tensors, source, number) for source in range(number)]
        rows = [self._row_for(tensor) for tensor in self._tensors]
        # One piece of each source at a time, so that all of them send at once.
        for turn in zip_longest(*parts):
            pieces = [
                (rank, *piece)
                for rank, piece in zip(self._sources, turn, strict=True)
                if piece is not None
            ]
            buffers = [
                torch.empty(len(part), dtype=self._tensors[index].dtype)
                for _, index, part in pieces
            ]
            ranks = [rank for rank, *_ in pieces]
            self._copies.receive(list(zip(buffers, ranks, strict=True)))
            with self._lock:
                if self._is_closed:
                    raise ReplicationError("The copy of the model states was given up.")
                for buffer, (_, index, part) in zip(buffers, pieces, strict=True):
                    rows[index][part.start : part.stop].copy_(buffer)
        self._rows = rows

    def _row_for(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._beside:
            return torch.empty(tensor.numel(), dtype=tensor.dtype)
        # A tensor that is no plain row of numbers is put together beside itself.
        plain = tensor.is_contiguous()
        return tensor.detach().view(-1) if plain else tensor.new_empty(tensor.numel())


_Piece = tuple[int, range]
"""A tensor's index, and a run of its numbers."""


def _copy_of(tensors: Sequence[torch.Tensor], piece: _Piece) -> torch.Tensor:
    """Return a piece in the host's memory."""
    index, part = piece
    return tensors[index].detach().reshape(-1)[part.start : part.stop].to("cpu", copy=True)


def _side_stream(tensors: Sequence[torch.Tensor]) -> torch.cuda.Stream | None:
    """Return a stream beside the one that computes, which begins after what that has begun."""
    device = next((tensor.device for tensor in tensors if tensor.is_cuda), None)
    if device is None:
        return None
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return stream


def _pieces_of(tensors: Sequence[torch.Tensor], source: int, num_sources: int) -> Iterator[_Piece]:
    """Yield the pieces that one of several sources sends: every n-th."""
    piece_bytes = max(_UNDER_WAY_BYTES // num_sources, _LEAST_PIECE_BYTES)
    number = 0
    for index, tensor in enumerate(tensors):
        length = max(1, piece_bytes // tensor.element_size())
        for begin in range(0, tensor.numel(), length):
            if number % num_sources == source:
                yield index, range(begin, min(begin + length, tensor.numel()))
            number += 1
