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
from benchmarks.harness.output import RESULTS, build_console, read_facts, write_results
from benchmarks.recovery import ours, ray_train, torchft_peer
from benchmarks.recovery.draining import DRAIN_NOTICE_S
from benchmarks.recovery.goals import OURS, goals_of
from benchmarks.recovery.outcome import Outcome
from benchmarks.recovery.report import build_row, build_table
from benchmarks.recovery.setting import (
    COURSES,
    FAULTS,
    GLOBAL_BATCH_SIZE,
    build_model,
    courses_of,
)
from benchmarks.recovery.shots import Report, Shots


@dataclass(frozen=True, slots=True)
class _System:
    """One system of the comparison.

    Args:
        title: Its name in the results.
        run: Does the faults to it.
    """

    title: str
    run: Callable[[Shots, Report], None]


_SYSTEMS = {
    "ours": _System(OURS, ours.run),
    "torchft": _System("torchft", torchft_peer.run_as_it_comes),
    "torchft-tuned": _System("torchft tuned", torchft_peer.run_tuned),
    "ray-train": _System("ray train", ray_train.run),
}


@dataclass(slots=True)
class _Results:
    """What one system's run brought.

    Args:
        title: The system's.
        outcomes: Of each fault.
        error: Why it could not go on, if it could not.
        run: Command, commit and date, if it is kept from an earlier run.
    """

    title: str
    outcomes: dict[str, list[Outcome]] = field(default_factory=dict)
    error: str | None = None
    run: dict[str, str] | None = None

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
    results = _kept(options) if options.keep else []
    with tempfile.TemporaryDirectory(prefix="mics-bench-") as name:
        tokens = write_tokens(Path(name))
        for system in options.systems:
            results.append(_Results(_SYSTEMS[system].title))
            for course in courses_of(options.faults):
                folder = Path(name) / system / course.name
                folder.mkdir(parents=True)
                shots = Shots(course, options.repetitions, options.seed, folder, tokens)
                # After each outcome, so that a run that is ended keeps what it has measured.
                _run(console, system, shots, results[-1], lambda: _write(options, results))
    console.print(build_table(_rows(results)))
    missed = judge(console, goals_of(_rows(results), options.faults), strict=options.strict)
    console.print(f"written to {options.output}")
    return int(missed or any(result.error for result in results if result.title == OURS))


def _run(
    console: Console, name: str, shots: Shots, results: _Results, write: Callable[[], None]
) -> None:
    """Do the faults to one system; one that fails does not keep the others from theirs.

    Args:
        console: Where each outcome is shown.
        name: The system.
        shots: What is done to it.
        results: Takes what it brought.
        write: Called after each news of it.
    """

    def report(turn: int, fault: str, outcome: Outcome) -> None:
        results.outcomes.setdefault(fault, []).append(outcome)
        console.print(f"{results.title} {turn}: {fault}: {outcome}")
        write()

    try:
        _SYSTEMS[name].run(shots, report)
    except (CannotPrepareError, MissingError) as error:
        results.error = f"{results.error}; {error}" if results.error else str(error)
        console.print(f"{results.title} cannot go on: {error}", markup=False)
        write()


def _kept(options: argparse.Namespace) -> list[_Results]:
    """Return what the output has of systems that are not run now."""
    facts = read_facts(options.output)
    run = {key: facts[key] for key in ("command", "commit", "date")}
    titles = {_SYSTEMS[name].title for name in options.systems}
    return [
        _Results(
            title,
            {fault: [Outcome(**each) for each in found] for fault, found in outcomes.items()},
            run=facts.get("kept", {}).get(title, run),
        )
        for title, outcomes in facts["outcomes"].items()
        if title not in titles
    ]


def _rows(results: Iterable[_Results]) -> list[dict[str, Any]]:
    return [row for result in results for row in result.rows()]


def _write(options: argparse.Namespace, results: Sequence[_Results]) -> None:
    rows = _rows(results)
    write_results(
        options.output,
        rows,
        goals=as_facts(goals_of(rows, options.faults)),
        models={course.name: build_model(course.forward_s) for course in COURSES},
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
        kept={result.title: result.run for result in results if result.run is not None},
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
    add("--repetitions", type=int, default=10, help="of each fault")
    add("--seed", type=int, default=0, help="of the choice of victims")
    add("--keep", action="store_true", help="keep what --output has of the other systems")
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
