"""Memory that a step frees stays with the worker for the next one."""

from __future__ import annotations

import ctypes
import resource
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

import pytest
import torch

from benchmarks.harness.processes import process_context
from mics_core.engine.allocator import keep_freed_memory

pytestmark = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc"
)

TENSOR_BYTES = 1 << 20
NUM_TENSORS = 100
NUM_STEPS = 20


def test_a_step_takes_hardly_any_new_pages_from_the_system() -> None:
    """As it comes, a step gets many of its pages anew."""
    as_it_comes, kept = _faults_of_a_step(is_kept=False), _faults_of_a_step(is_kept=True)
    assert kept < 0.1 * as_it_comes


@pytest.mark.parametrize(
    "environment",
    [{"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}],
)
def test_a_users_own_setting_is_left_alone(environment: dict[str, str]) -> None:
    assert not keep_freed_memory(environment)


def _faults_of_a_step(*, is_kept: bool) -> float:
    context = process_context()
    mine, theirs = context.Pipe()
    process = context.Process(target=_count_faults, args=(theirs, is_kept), daemon=True)
    process.start()
    theirs.close()
    assert mine.poll(120), "the process has not answered within 120 s"
    faults: float = mine.recv()
    process.join(10)
    return faults


def _count_faults(pipe: Connection, is_kept: bool) -> None:
    """Run steps in a thread, as Ray Train does, and send the page faults of one."""
    torch.set_num_threads(1)
    if is_kept:
        assert keep_freed_memory({})
    with ThreadPoolExecutor(1) as thread:
        thread.submit(_steps, 3).result()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        thread.submit(_steps, NUM_STEPS).result()
    pipe.send((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / NUM_STEPS)


def _steps(number: int) -> None:
    for _ in range(number):
        kept = [torch.zeros(TENSOR_BYTES, dtype=torch.uint8) for _ in range(NUM_TENSORS)]
        kept.clear()
