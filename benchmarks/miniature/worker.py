"""A worker of a miniature run: the real engine in a process, its supervisor behind a pipe."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from benchmarks.harness.niceness import set_idle
from benchmarks.miniature.points import FailAt, arm
from mics_core.cluster.messages import (
    Checkpointed,
    Committed,
    Ended,
    Entered,
    Failed,
    Message,
    Missed,
    Ready,
    ReplicationBroke,
)
from mics_core.elastic.plan import GenerationPlan
from mics_core.engine.checkpoint import CheckpointReport
from mics_core.engine.summary import StepCommit
from mics_core.spec import JobSpec

if TYPE_CHECKING:
    from mics_core.engine.trainer import Trainer

_WAIT_S = 5.0
_LEAST_SILENCE_S = 2.0


@dataclass(frozen=True)
class Settings:
    """What a worker is told."""

    group_id: int
    rank: int
    size: int
    world_port: int
    begins_run: bool
    spec: JobSpec
    faults: tuple[FailAt, ...]
    silence_s: float
    first_step_s: float
    starts_quietly: bool
    node: str


@dataclass(frozen=True)
class News:
    """What the supervisor tells all workers of a group.

    Args:
        plan: A generation that concerns the group; none if nothing but the permission changed.
        after_loss: The newest generation that was announced because a member is gone.
        allowed: Steps that may be committed before the members are held.
    """

    plan: GenerationPlan | None
    after_loss: int
    allowed: int


@dataclass(frozen=True)
class Digest:
    """The bits of a worker's states at the end."""

    rank: int
    digest: str


class PipeMembership:
    """Implements `mics_core.engine.membership.Membership` over a pipe.

    Args:
        settings: The worker's.
        pipe: To the supervisor.
    """

    def __init__(self, settings: Settings, pipe: Connection):
        self._settings = settings
        self._pipe = pipe
        self._plans: dict[int, GenerationPlan] = {}
        self._after_loss = self._allowed = 0
        self._news = threading.Condition()
        self._sending = threading.Lock()
        threading.Thread(target=self._listen, name="news", daemon=True).start()

    @property
    def group_id(self) -> int:
        return self._settings.group_id

    @property
    def outlives_losses(self) -> bool:
        return True

    def pending(self) -> int:
        return max(self._plans, default=0)

    def announced(self) -> GenerationPlan | None:
        return self._plans.get(self.pending())

    def after_loss(self) -> int:
        return self._after_loss

    def next_plan(self, after: int) -> GenerationPlan | None:
        with self._news:
            self._news.wait_for(lambda: self.pending() > after, _WAIT_S)
        return self._plans[self.pending()] if self.pending() > after else None

    def plan(self, number: int) -> GenerationPlan:
        return self._plans[number]

    def entered(self, generation: int, step: int, connect_s: float) -> None:
        self.send(Entered(self._settings.rank, generation, step, connect_s))

    def committed(self, commit: StepCommit, took_s: float) -> None:
        if self._settings.rank == 0:
            self.send(Committed(commit, took_s, took_s, time.time()))
        with self._news:
            self._news.wait_for(lambda: self._allowed > commit.step + 1)

    def broken(self, generation: int, step: int, error: str, *, has_state: bool) -> None:
        self.send(ReplicationBroke(self._settings.rank, generation, step, error, has_state))

    def missed(self, generation: int, groups: tuple[int, ...]) -> None:
        self.send(Missed(self._settings.rank, generation, groups))

    def checkpointed(self, report: CheckpointReport) -> None:
        self.send(Checkpointed(self._settings.rank, report.step, report.path, report.error))

    def send(self, message: Message | Digest) -> None:
        with self._sending:
            self._pipe.send(message)

    def _listen(self) -> None:
        while True:
            try:
                news: News = self._pipe.recv()
            except (EOFError, OSError):
                os._exit(1)  # the test is over
            with self._news:
                if news.plan is not None:
                    self._plans[news.plan.number] = news.plan
                self._after_loss = max(self._after_loss, news.after_loss)
                self._allowed = news.allowed
                self._news.notify_all()


def serve(settings: Settings, pipe: Connection) -> None:
    """Train until the end, and end the process."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if settings.starts_quietly:
        set_idle(os.getpid(), is_idle=True)
    membership = PipeMembership(settings, pipe)
    trainers: list[Trainer] = []
    try:
        _train(settings, membership, trainers)
    except Exception as error:
        from mics_core.engine.causes import described, is_lost_peer

        step = trainers[0].committed_steps if trainers else 0
        own_error = not is_lost_peer(error)
        membership.send(Failed(settings.rank, step, described(error), own_error))
    os._exit(0)  # peers may be gone already, and a clean end of gloo would wait for them


def _train(settings: Settings, membership: PipeMembership, trainers: list[Trainer]) -> None:
    import torch
    import torch.distributed as dist

    from benchmarks.harness.digest import digest_of
    from mics_core.comm.partition import form_partition_group
    from mics_core.comm.store import MeetingStore, host_store
    from mics_core.engine import entering
    from mics_core.engine.allocator import keep_freed_memory
    from mics_core.engine.build import build_trainer
    from mics_core.engine.loop import Ending, LoopOptions, train

    torch.set_num_threads(1)
    keep_freed_memory()
    # Of a busy network; here it would only lengthen what is configured.
    least_s = max(settings.silence_s, _LEAST_SILENCE_S)
    entering._LEAST_SILENCE_S = min(entering._LEAST_SILENCE_S, least_s)
    arm(settings.faults)
    world = MeetingStore("127.0.0.1", settings.world_port)
    dist.init_process_group("gloo", store=world, rank=settings.rank, world_size=settings.size)
    device = torch.device("cpu")
    nodes = [settings.node] * settings.size
    partition = form_partition_group([range(settings.size)], nodes, device)
    stores = [host_store("127.0.0.1")] if settings.rank == 0 else []

    def build(initialise: bool) -> Trainer:
        trainers.append(build_trainer(settings.spec, partition, device, initialise=initialise))
        port = stores[0].port if stores else None
        if settings.starts_quietly:
            set_idle(os.getpid(), is_idle=False)
        membership.send(Ready(settings.rank, nodes[0], "127.0.0.1", os.getpid(), port))
        return trainers[0]

    options = LoopOptions(settings.first_step_s, settings.silence_s)
    ending = train(build, membership, begins_run=settings.begins_run, options=options)
    membership.send(Digest(settings.rank, digest_of(trainers[0])))
    membership.send(Ended(settings.rank, ending == Ending.FINISHED))
