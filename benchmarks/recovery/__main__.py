"""Measures what faults cost, our system and its peers: `python -m benchmarks.recovery`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.harness.environments import CannotPrepareError
from benchmarks.harness.followed import MissingError
from benchmarks.harness.goals import add_strict, as_facts, judge
from benchmarks.harness.jobs import write_tokens
from benchmarks.harness.output import RESULTS, build_console, write_results
from benchmarks.recovery import ours, ray_train, torchft_peer
from benchmarks.recovery.draining import DRAIN_NOTICE_S
from benchmarks.recovery.faults import FAULTS
from benchmarks.recovery.goals import OURS, goals_of
from benchmarks.recovery.outcome import Outcome
from benchmarks.recovery.report import build_row, build_table
from benchmarks.recovery.setting import GLOBAL_BATCH_SIZE, MODEL
from benchmarks.recovery.shots import Report, Shots


@dataclass(frozen=True, slots=True)
class _System:
    """One system of the comparison.

    Args:
        title: Its name in the results.
        run: Does the faults to it.
        repetitions: Of each fault, where the options name no number.
    """

    title: str
    run: Callable[[Shots, Report], None]
    repetitions: int


_SYSTEMS = {
    "ours": _System(OURS, ours.run, 10),
    "ray-train": _System("ray train", ray_train.run, 3),
    "torchft": _System("torchft", torchft_peer.run_as_it_comes, 5),
    "torchft-tuned": _System("torchft tuned", torchft_peer.run_tuned, 5),
}


@dataclass(slots=True)
class _Results:
    """What one system's run brought.

    Args:
        title: The system's.
        outcomes: Of each fault.
        error: Why it could not go on, if it could not.
    """

    title: str
    outcomes: dict[str, list[Outcome]] = field(default_factory=dict)
    error: str | None = None

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each fault, and one for the error."""
        rows = [build_row(self.title, fault, found) for fault, found in self.outcomes.items()]
        error = {"system": self.title, "error": self.error}
        return rows if self.error is None else [*rows, error]


def main() -> int:
    """Run the systems in turn and write what the faults cost each; return 1 if ours failed, else 0.

    With `--strict` a goal that is missed or not measured gives 1 too.
    """
    options = _parse()
    console = build_console()
    # An end by `kill` still takes the nodes down.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # The workers of every system import the emulated model from here.
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    results: list[_Results] = []
    with tempfile.TemporaryDirectory(prefix="mics-bench-") as name:
        tokens = write_tokens(Path(name))
        for system in options.systems:
            folder = Path(name) / system
            folder.mkdir()
            results.append(_run(console, options, system, folder, tokens))
            _write(options.output, results, options.faults)
    console.print(build_table(_rows(results)))
    missed = judge(console, goals_of(_rows(results), options.faults), strict=options.strict)
    console.print(f"written to {options.output}")
    return int(missed or any(result.error for result in results if result.title == OURS))


def _run(
    console: Console, options: argparse.Namespace, name: str, folder: Path, tokens: Path
) -> _Results:
    """Do the faults to one system; one that fails does not keep the others from theirs."""
    system = _SYSTEMS[name]
    results = _Results(system.title)

    def report(turn: int, fault: str, outcome: Outcome) -> None:
        results.outcomes.setdefault(fault, []).append(outcome)
        console.print(f"{system.title} {turn}: {fault}: {outcome}")

    repetitions = options.repetitions or system.repetitions
    shots = Shots(tuple(options.faults), repetitions, options.seed, folder, tokens)
    try:
        system.run(shots, report)
    except (CannotPrepareError, MissingError) as error:
        results.error = str(error)
        console.print(f"{system.title} cannot go on: {error}", markup=False)
    return results


def _rows(results: Iterable[_Results]) -> list[dict[str, Any]]:
    return [row for result in results for row in result.rows()]


def _write(path: Path, results: Sequence[_Results], faults: Sequence[str]) -> None:
    rows = _rows(results)
    write_results(
        path,
        rows,
        goals=as_facts(goals_of(rows, faults)),
        model=MODEL,
        global_batch_size=GLOBAL_BATCH_SIZE,
        ray_train={
            "checkpoint_every_steps": ray_train.CHECKPOINT_EVERY,
            "elastic_resize_monitor_interval_s": ray_train.RESIZE_INTERVAL_S,
        },
        drain_notice_s=DRAIN_NOTICE_S,
        torchft={
            "version": torchft_peer.VERSION,
            "tuned": " ".join(torchft_peer.TUNED),
        },
        outcomes={
            result.title: {
                fault: [asdict(each) for each in found] for fault, found in result.outcomes.items()
            }
            for result in results
        },
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=__doc__)
    add = parser.add_argument
    add("--systems", nargs="+", choices=_SYSTEMS, default=list(_SYSTEMS), help="all by default")
    add("--faults", type=_faults, default=list(FAULTS), help="such as 'node killed,node added'")
    defaults = ", ".join(f"{name} {system.repetitions}" for name, system in _SYSTEMS.items())
    add("--repetitions", type=int, help=f"of each fault; by default {defaults}")
    add("--seed", type=int, default=0, help="of the choice of victims")
    add_strict(parser)
    add("--output", type=Path, default=RESULTS / "recovery.json", help="where to write")
    return parser.parse_args()


def _faults(text: str) -> list[str]:
    faults = [part.strip() for part in text.split(",")]
    if unknown := set(faults) - set(FAULTS):
        raise argparse.ArgumentTypeError(
            f"{', '.join(sorted(unknown))} is none of {', '.join(FAULTS)}"
        )
    return faults


if __name__ == "__main__":
    sys.exit(main())
