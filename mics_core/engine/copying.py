"""Copies the model states to members that are behind, while the others train on.

[Note: joining without holding anyone up]
Some members of a generation hold the states of its first step s, others are behind: newcomers, and
a group that missed the end of the last step. Those that hold them keep a snapshot, each of its part
of the states, send it in the background over connections of their own, and train on. The snapshot
is taken in the background too, beside the forward and backward of step s, which only read the
states; the update at its end waits for it. And the sending leaves the links to the second hop
(`mics_core.engine.link_use`).

A member that is behind listens: it takes part in the exchange of the summaries, with no
micro-batches. The gradient is summed up without it (`mics_core.engine.reach`), since each member of
a ring makes the others send more. It gets the sum later, each member's part of it behind its part
of the states, over the same connections, beside the next steps; it keeps the sums, and when the
states are there applies them in order. That brings it to the bits of its peers, but for the last
gradient, which always comes a step late. So once that one alone is missing, or those missing do not
become fewer, gradients are summed up with it, as a member with a gradient of zero. In the summary
of the step for which it has all others it says that it will hold the states, and from the next one
on it takes its share of micro-batches.

Where the links have no time left for the gradients, these would pile up. A member that has more to
send than the snapshot had, before it hands on another gradient, says so, and from the next step on
gradients are summed up with those that listen, who so receive them at once, while what has piled up
is sent. So it is from the beginning where micro-batches are added up in one order
(`mics_core.engine.ordered_hop`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import zip_longest

import torch

from mics_core.comm.copies import Copies
from mics_core.engine.link_use import LinkUse
from mics_core.errors import ReplicationError

__all__ = ["Incoming", "Outgoing"]

_PIECE_BYTES = 1 << 18
"""A second hop that begins has one of each source under way on the link of who is behind."""


class Outgoing:
    """Sends this member's part of the states, as they are now, and of the gradients that follow.

    Whoever changes the states must call `wait_until_taken` first, and whoever changes a gradient
    `wait_until_gradient_taken`.

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
        self._source = source
        self._num_sources = num_sources
        self._listeners = tuple(listeners)
        self._link_use = link_use
        self._is_closed = threading.Event()
        self._stream = _side_stream(tensors)
        self._taking = ThreadPoolExecutor(max_workers=1, thread_name_prefix="copies-taken")
        self._sending = ThreadPoolExecutor(max_workers=1, thread_name_prefix="copies-out")
        self._lock = threading.Lock()
        self._unsent_bytes = 0
        self._states_bytes, self._states_taken = self._begin(tensors, at_once)
        self._gradient_taken: Future[deque[torch.Tensor]] | None = None

    def hand_on(self, gradient: torch.Tensor) -> None:
        """Send this member's part of a gradient, as it is now, after all that came before.

        Args:
            gradient: The gradient buffer.
        """
        _, self._gradient_taken = self._begin([gradient])

    @property
    def is_full(self) -> bool:
        """Whether gradients come faster than they leave: more is unsent than at the beginning."""
        with self._lock:
            return self._unsent_bytes > self._states_bytes

    def wait_until_taken(self) -> None:
        """Wait until the states may change.

        Raises:
            RuntimeError: There is no memory for the snapshot.
        """
        self._states_taken.result()

    def wait_until_gradient_taken(self) -> None:
        """Wait until the gradient that was handed on last may change.

        Raises:
            RuntimeError: There is no memory for the snapshot.
        """
        if self._gradient_taken is not None:
            self._gradient_taken.result()

    def close(self) -> None:
        """Send no more."""
        self._is_closed.set()
        self._copies.close()
        for thread in (self._taking, self._sending):
            thread.shutdown(wait=False)

    def _begin(
        self, tensors: Sequence[torch.Tensor], at_once: Collection[int] = ()
    ) -> tuple[int, Future[deque[torch.Tensor]]]:
        """Begin to take and to send this member's part; return its bytes, and what takes it."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        pieces = list(_pieces_of(tensors, self._source, self._num_sources))
        early = {piece: _copy_of(tensors, piece) for piece in pieces if piece[0] in at_once}
        num_bytes = sum(len(part) * tensors[index].element_size() for index, part in pieces)
        with self._lock:
            self._unsent_bytes += num_bytes
        taken = self._taking.submit(self._take, tensors, pieces, early)
        self._sending.submit(self._send, taken)
        return num_bytes, taken

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

    def _send(self, taken: Future[deque[torch.Tensor]]) -> None:
        try:
            snapshot = taken.result()
            while snapshot and not self._is_closed.is_set():
                self._link_use.wait_until_free()
                piece = snapshot.popleft()
                self._copies.send(piece, self._listeners)
                with self._lock:
                    self._unsent_bytes -= piece.nbytes
        except ReplicationError:
            # Who was lost breaks the next step too, and that says so; nothing more is taken.
            self._is_closed.set()


class Incoming:
    """Receives the states, and the gradients that follow.

    Args:
        tensors: The states, which are overwritten.
        copies: The connections.
        sources: Ranks of the members that hold them.
    """

    def __init__(self, tensors: Sequence[torch.Tensor], copies: Copies, sources: Sequence[int]):
        self._copies = copies
        self._sources = tuple(sources)
        self._lock = threading.Lock()
        self._is_closed = False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="copies-in")
        self._received: Future[None] = self._thread.submit(self._receive, list(tensors))

    @property
    def is_complete(self) -> bool:
        """Whether the states are there.

        Raises:
            ReplicationError: A source was lost.
        """
        if not self._received.done():
            return False
        self._received.result()
        return True

    def wait(self) -> None:
        """Wait until the states are there.

        Raises:
            ReplicationError: A source was lost.
        """
        self._received.result()

    def expect(self, gradient: torch.Tensor) -> Future[None]:
        """Receive the next gradient that the sources hand on.

        Args:
            gradient: In the host's memory; is overwritten.

        Returns:
            Done when it is there.
        """
        return self._thread.submit(self._receive, [gradient])

    def close(self) -> None:
        """Write no more into the states; what still arrives is thrown away."""
        with self._lock:
            self._is_closed = True
        self._copies.close()
        self._thread.shutdown(wait=False)

    def _receive(self, tensors: Sequence[torch.Tensor]) -> None:
        number = len(self._sources)
        parts = [_pieces_of(tensors, source, number) for source in range(number)]
        # Tensors that are no plain row of numbers are put together beside themselves.
        rows = [
            tensor.detach().view(-1) if tensor.is_contiguous() else tensor.new_empty(tensor.numel())
            for tensor in tensors
        ]
        # One piece of each source at a time, so that all of them send at once.
        for turn in zip_longest(*parts):
            pieces = [
                (rank, *piece)
                for rank, piece in zip(self._sources, turn, strict=True)
                if piece is not None
            ]
            buffers = [
                torch.empty(len(part), dtype=tensors[index].dtype) for _, index, part in pieces
            ]
            ranks = [rank for rank, *_ in pieces]
            self._copies.receive(list(zip(buffers, ranks, strict=True)))
            with self._lock:
                if self._is_closed:
                    raise ReplicationError("The copy of the model states was given up.")
                for buffer, (_, index, part) in zip(buffers, pieces, strict=True):
                    rows[index][part.start : part.stop].copy_(buffer)
        with self._lock:
            for tensor, row in zip(tensors, rows, strict=True):
                if not tensor.is_contiguous() and not self._is_closed:
                    tensor.detach().copy_(row.view(tensor.shape))


_Piece = tuple[int, range]
"""A tensor's index, and a run of its numbers."""


def _copy_of(tensors: Sequence[torch.Tensor], piece: _Piece) -> torch.Tensor:
    """Return a piece in the host's memory."""
    index, part = piece
    return tensors[index].detach().reshape(-1)[part.start : part.stop].to("cpu", copy=True)


def _side_stream(tensors: Sequence[torch.Tensor]) -> torch.cuda.Stream | None:
    """Return a stream beside the one that computes; none on the host."""
    device = next((tensor.device for tensor in tensors if tensor.is_cuda), None)
    if device is None:
        return None
    return torch.cuda.Stream(device)


def _pieces_of(tensors: Sequence[torch.Tensor], source: int, num_sources: int) -> Iterator[_Piece]:
    """Yield the pieces that one of several sources sends: every n-th."""
    number = 0
    for index, tensor in enumerate(tensors):
        length = max(1, _PIECE_BYTES // tensor.element_size())
        for begin in range(0, tensor.numel(), length):
            if number % num_sources == source:
                yield index, range(begin, min(begin + length, tensor.numel()))
            number += 1
