"""The facts of a demonstration: a table for people, `demo-result.json` for programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from examples.demo.scenario import STEPS_BEFORE_SCALING, Facts, rate
from mics_core.spec.status import JobState

LEAST_FALL = 0.30


def conclude(console: Console, facts: Facts, total_steps: int, elapsed_s: float, path: Path) -> int:
    """Tell what happened, and write it to `path`; return 0 if everything promised held, else 1."""
    if not facts.steps:
        console.print(f"[red]The job ended as {facts.state.value}: {facts.reason}[/red]")
        return 1
    result = result_of(facts, elapsed_s)
    write(path, result)
    show(console, facts, result)
    failures = failures_of(facts, result, total_steps)
    for failure in failures:
        console.print(f"[red]Not as promised: {failure}[/red]")
    return 1 if failures else 0


def result_of(facts: Facts, elapsed_s: float) -> dict[str, Any]:
    """Return the facts under the keys of `demo-result.json`."""
    assert facts.final is not None
    samples = facts.final.samples
    return {
        "loss_first": facts.steps[0].loss,
        "loss_last": facts.steps[-1].loss,
        "samples_due": samples.due,
        "samples_used": samples.used,
        "samples_repeated": samples.repeated,
        "generations": [
            {
                "number": generation.number,
                "groups": generation.groups,
                "reason": generation.reason,
                "step": generation.step,
            }
            for generation in facts.final.generations
        ],
        "survivor_pids_unchanged": bool(facts.pids_at_start)
        and facts.pids_at_start == facts.pids_at_end,
        "elapsed_s": round(elapsed_s, 1),
    }


def failures_of(facts: Facts, result: dict[str, Any], total_steps: int) -> list[str]:
    """Return what the demonstration promised and did not keep; empty if all went well."""
    numbers = [step.step for step in facts.steps]
    checks = {
        f"the job ended as {facts.state.value}: {facts.reason}": facts.state == JobState.FINISHED,
        "the steps are not 0, 1, 2, … each once": numbers == list(range(total_steps)),
        f"the loss fell by less than {LEAST_FALL:.0%}": result["loss_last"]
        <= (1 - LEAST_FALL) * result["loss_first"],
        "samples were lost": result["samples_used"] == result["samples_due"] > 0,
        "samples were repeated": result["samples_repeated"] == 0,
        "the survivors were restarted": result["survivor_pids_unchanged"],
        "no third group joined": any(step.num_groups == 3 for step in facts.steps),
        "no node was lost": facts.lost_group is not None and bool(facts.lost_processes),
        "no step followed the loss": facts.steps[-1].num_groups == 2,
    }
    return [failure for failure, kept in checks.items() if not kept]


def show(console: Console, facts: Facts, result: dict[str, Any]) -> None:
    """Print the table."""
    table = Table(title="What happened", show_header=False, title_style="bold")
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    first, last = result["loss_first"], result["loss_last"]
    table.add_row("loss, first step", f"{first:.4f}")
    table.add_row("loss, last step", f"{last:.4f}  ({(last - first) / first:+.0%})")
    before, after = rate(facts.steps, 2, STEPS_BEFORE_SCALING), rate(facts.steps, 3)
    table.add_row("tokens/s before scaling", f"{before:,.0f}  (2 groups)")
    table.add_row(
        "tokens/s after scaling", f"{after:,.0f}  (3 groups; all share this machine's cores)"
    )
    for generation in result["generations"]:
        table.add_row(
            f"generation {generation['number']}",
            f"groups {generation['groups']} from step {generation['step']}: {generation['reason']}",
        )
    table.add_row("samples used / due", f"{result['samples_used']} / {result['samples_due']}")
    table.add_row("samples repeated", str(result["samples_repeated"]))
    table.add_row("pids of group 0, start", ", ".join(map(str, facts.pids_at_start)))
    same = "the same" if result["survivor_pids_unchanged"] else "CHANGED"
    table.add_row("pids of group 0, end", f"{', '.join(map(str, facts.pids_at_end))}  ({same})")
    table.add_row("processes killed", str(len(facts.lost_processes)))
    table.add_row("elapsed", f"{result['elapsed_s']:.0f} s")
    console.print(table)


def write(path: Path, result: dict[str, Any]) -> None:
    """Write the facts as JSON."""
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
