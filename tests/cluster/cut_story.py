"""A job on a cluster of emulated nodes, one of which loses its network: run on the head's node.

    python -m tests.cluster.cut_story ADDRESS FOLDER

It says `cut` when the plug is to be pulled and `heal` when it is to be put back, and goes on when
it is answered; what it saw goes into the folder as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ray

from mics_core.cluster.names import NAMESPACE
from mics_core.spec.status import GroupState
from tests.cluster.control import Control
from tests.cluster.jobs import recorded_job
from tests.cluster.running import RunningJob

STEPS = 150
SILENCE_S = 4.0


def main(address: str, folder: Path) -> None:
    ray.init(address=address, namespace=NAMESPACE, log_to_driver=False)
    groups = {"minimum": 1, "wanted": 2, "silence_s": SILENCE_S}
    with RunningJob(
        recorded_job(folder, STEPS, partition_size=1, groups=groups), Control(folder)
    ) as job:
        job.wait_until(lambda job: job.group_events(1, GroupState.READY), "the second group")
        job.train_until(lambda job: job.has_entered(0, 1), "the entry of both groups")
        job.train_to(job.control.allowed + 12)  # so that the limits follow the steps
        survivors, victims, cut_node = job.pids(0), job.pids(1), job.node_of(1)
        ask("cut", cut_node)
        cut_at = job.control.allowed + 1
        job.train_to(cut_at + 2)
        ask("heal", cut_node)
        job.wait_until(lambda job: job.group_events(2, GroupState.READY), "a group in its place")
        job.train_until(lambda job: job.has_entered(0, 2), "the entry of that group")
        job.train_to(job.control.allowed + 2)
        seen = {
            "survivors": [survivors, job.pids(0)],
            "victims": victims,
            "nodes": [cut_node, job.node_of(2)],
        }
        status = job.train_to_the_end()
        seen |= {
            "status": status.model_dump(mode="json"),
            "num_groups": [step.num_groups for step in job.steps[cut_at - 1 : cut_at + 3]],
            "losses": [step.loss for step in job.steps],
        }
        (folder / "seen.json").write_text(json.dumps(seen))


def ask(what: str, node_id: str) -> None:
    address = next(n["NodeManagerAddress"] for n in ray.nodes() if n["NodeID"] == node_id)
    print(what, address, flush=True)
    assert sys.stdin.readline() == "done\n"


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
