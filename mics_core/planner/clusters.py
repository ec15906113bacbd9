"""Clusters that are known by name: the GPU instances of Amazon EC2 that MiCS was published on.

Sources, all of the maker or the provider:

- Networks, GPUs and GPU memory of an instance: Amazon EC2 instance types, accelerated computing
  (p3dn.24xlarge 100 Gbit/s, p4d and p4de.24xlarge 400 Gbit/s, p5.48xlarge 3200 Gbit/s, all with
  EFA; NVLink or NVSwitch inside).
- Peak rates are dense, in TFLOP/s, from NVIDIA's data sheets of V100 SXM2, A100 SXM and H100 SXM:
  15.7, 19.5 and 67 in fp32, without TF32, which torch leaves off; 312 and 989 of the latter two in
  bf16 with sums in fp32; 7.8, 19.5 and 67 in fp64, the latter two on tensor cores. A V100's tensor
  cores know fp16 alone, which no job trains in: in bf16 it has the rate of fp32 at best.
- So are memory bandwidths (900, 1555, 2039 and 3350 GB/s) and NVLink: 300, 600 and 900 GB/s for
  both directions together, hence half of each is taken.
- Between a GPU and the host: 16 lanes of PCI Express, one way, of the older of the two ends'
  generations; 15.75 GB/s in generation 3 and 31.5 GB/s in generation 4 (8 and 16 GT/s a lane,
  128 of 130 bits). V100 SXM2 has generation 3, A100 SXM 4 and H100 SXM 5, by NVIDIA's data sheets;
  the processors are of Intel's Skylake (p3dn) and Cascade Lake (p4d, p4de), with generation 3, and
  of AMD's third EPYC (p5), with generation 4. GPUs that share lanes by a switch get less.

Not from a source, and the same for all: the share of the peak that layers reach and the latency of
a round between nodes, which were fitted to two published figures in half precision and are taken
for all (`mics_core.planner.published`), and the latency of a round inside a node, an assumption. A
network's nominal bandwidth is taken as it stands. So these tell what to expect before there is a
cluster; measure yours with `mics probe` and give the file instead.
"""

from __future__ import annotations

import difflib

from mics_core.planner.profile import ClusterProfile, Link, Peaks
from mics_core.planner.published import EFFICIENCY, LATENCY_S

__all__ = ["CLUSTER_NAMES", "close_cluster_names", "named_cluster", "names_a_file"]

_GIB = 1 << 30
_INTRA_NODE_LATENCY_S = 10e-6
_DEFAULT_NODES = 8
_V100 = Peaks(fp32=15.7e12, bf16=15.7e12, fp64=7.8e12, lacking=("bf16",))
_A100 = Peaks(fp32=19.5e12, bf16=312e12, fp64=19.5e12)
_H100 = Peaks(fp32=67e12, bf16=989e12, fp64=67e12)
_PCIE_3_GB_PER_S = 15.75


def _gpus(
    name: str,
    *,
    memory_gib: int,
    peaks: Peaks,
    memory_gb_per_s: float,
    nvlink_gb_per_s: float,
    network_gbit_per_s: float,
    pcie_gb_per_s: float,
) -> ClusterProfile:
    return ClusterProfile(
        name=name,
        num_nodes=_DEFAULT_NODES,
        workers_per_node=8,
        memory_bytes=memory_gib * _GIB,
        peak_flops_per_s=peaks,
        intra_node=Link(nvlink_gb_per_s * 1e9 / 2, _INTRA_NODE_LATENCY_S),
        inter_node=Link(network_gbit_per_s * 1e9 / 8, LATENCY_S),
        efficiency=EFFICIENCY,
        backend="nccl",
        memory_bytes_per_s=memory_gb_per_s * 1e9,
        host_bytes_per_s=pcie_gb_per_s * 1e9,
    )


_CLUSTERS = (
    _gpus(
        "p3dn.24xlarge",
        memory_gib=32,
        peaks=_V100,
        memory_gb_per_s=900,
        nvlink_gb_per_s=300,
        network_gbit_per_s=100,
        pcie_gb_per_s=_PCIE_3_GB_PER_S,
    ),
    _gpus(
        "p4d.24xlarge",
        memory_gib=40,
        peaks=_A100,
        memory_gb_per_s=1555,
        nvlink_gb_per_s=600,
        network_gbit_per_s=400,
        pcie_gb_per_s=_PCIE_3_GB_PER_S,
    ),
    _gpus(
        "p4de.24xlarge",
        memory_gib=80,
        peaks=_A100,
        memory_gb_per_s=2039,
        nvlink_gb_per_s=600,
        network_gbit_per_s=400,
        pcie_gb_per_s=_PCIE_3_GB_PER_S,
    ),
    _gpus(
        "p5.48xlarge",
        memory_gib=80,
        peaks=_H100,
        memory_gb_per_s=3350,
        nvlink_gb_per_s=900,
        network_gbit_per_s=3200,
        pcie_gb_per_s=2 * _PCIE_3_GB_PER_S,
    ),
)

CLUSTER_NAMES = tuple(cluster.name for cluster in _CLUSTERS)
"""The names, each with 8 nodes unless another number is asked for."""


def named_cluster(name: str, num_nodes: int | None = None) -> ClusterProfile | None:
    """Return the cluster of that name, or None if there is none.

    Args:
        name: The instance type, such as `p4d.24xlarge`.
        num_nodes: Instances; 8 if left out.
    """
    found = next((cluster for cluster in _CLUSTERS if cluster.name == name), None)
    if found is None or num_nodes is None:
        return found
    return found.with_nodes(num_nodes)


def names_a_file(name: str) -> bool:
    """Whether what stands for a cluster is a path and no name."""
    return "/" in name or name.endswith((".yaml", ".yml"))


def close_cluster_names(name: str) -> list[str]:
    """Return the names that may be meant, closest first."""
    return difflib.get_close_matches(name, CLUSTER_NAMES, n=2, cutoff=0.4)
