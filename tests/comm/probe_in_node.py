"""One worker of a probe, run on an emulated node: rank 0 prints what was found between nodes.

python -m tests.comm.probe_in_node RANK ADDRESS NODE,NODE,…
"""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist

from mics_core.comm.measured import ProbeSettings
from mics_core.comm.probing import measure_cluster

PORT = 29400
SIZES = (4 << 10, 64 << 10, 512 << 10, 2 << 20)


def main(rank: int, address: str, nodes: list[str]) -> None:
    torch.set_num_threads(1)
    store = dist.TCPStore(address, PORT, len(nodes), is_master=rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=len(nodes))
    settings = ProbeSettings(SIZES, repetitions=5, window_s=0.1, compute_s=0.05)
    fit = measure_cluster(nodes, torch.device("cpu"), settings).inter_node
    assert fit is not None
    dist.barrier()
    if rank == 0:
        print(json.dumps(fit.bytes_per_s * fit.rings_per_node))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3].split(","))
