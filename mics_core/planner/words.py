"""Layouts in few words, for the planner's sentences."""

from __future__ import annotations

from mics_core.planner.prediction import Layout
from mics_core.planner.strategy import Strategy

__all__ = ["described", "routes_in_words"]


def described(layout: Layout) -> str:
    """Return a layout in few words, without what is usual."""
    strategy = layout.strategy
    words = [f"p = {layout.partition_size}", f"{layout.num_groups} groups"]
    words[-1] = words[-1].removesuffix("s") if layout.num_groups == 1 else words[-1]
    words.append(f"micro-batch {layout.micro_batch_size}")
    if strategy.reshard != "always":
        words.append(f"reshard {strategy.reshard}")
    if strategy.accumulation != "group":
        words.append(f"accumulation {strategy.accumulation}")
    if routes := routes_in_words(strategy):
        words.append(routes)
    if layout.is_checkpointed:
        words.append("checkpointing")
    return ", ".join(words)


def routes_in_words(strategy: Strategy) -> str:
    """Return which collectives of a strategy are hierarchical; empty if none is."""
    named = {
        "block gathers": strategy.gather_block,
        "root gathers": strategy.gather_root,
        "block scatters": strategy.scatter_block,
        "root scatters": strategy.scatter_root,
    }
    staged = [name for name, route in named.items() if route == "hierarchical"]
    if len(staged) == len(named):
        return "hierarchical"
    return f"hierarchical {' and '.join(staged)}" if staged else ""
