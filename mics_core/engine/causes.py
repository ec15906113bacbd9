"""Tells why a worker's loop ended with an error: by its own code or data, or with a lost peer."""

from __future__ import annotations

import torch.distributed as dist

from mics_core.errors import MicsError, PartitionBrokenError

__all__ = ["described", "is_lost_peer"]


def described(error: Exception) -> str:
    """Return an error's words, led by its type where it is none of ours."""
    text = str(error).strip()
    if isinstance(error, MicsError):
        return text or type(error).__name__
    name = type(error).__name__
    return f"{name}: {text.splitlines()[0]}" if text else name


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error only says that another worker of the same partition group has gone."""
    if isinstance(error.__cause__, PartitionBrokenError) or isinstance(
        error, (PartitionBrokenError, dist.DistError)
    ):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        sign in text for sign in ("gloo", "NCCL", "Connection closed by peer", "Connection reset")
    )
