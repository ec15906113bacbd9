"""The jobs as metrics, computed at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mics_core.spec.status import GroupState, GroupStatus, JobState
from service.metrics.readings import LiveJob, Readings

__all__ = ["JOB_LABELS", "JobCollector"]

JOB_LABELS = ("job_id", "name")

_Value = Callable[[LiveJob], float | None]

_GAUGES: tuple[tuple[str, str, _Value], ...] = (
    ("mics_job_step", "Committed steps.", lambda job: job.step),
    ("mics_job_steps", "Steps of the whole run.", lambda job: job.steps),
    ("mics_job_loss", "Loss of the last committed step.", lambda job: job.loss),
    (
        "mics_job_tokens_per_second",
        "Tokens a second, median over the last steps.",
        lambda job: job.tokens_per_s,
    ),
    (
        "mics_job_samples_per_second",
        "Samples a second, median over the last steps.",
        lambda job: job.samples_per_s,
    ),
    ("mics_job_wanted_groups", "Partition groups that are wanted.", lambda job: job.wanted_groups),
    (
        "mics_job_minimum_groups",
        "Partition groups below which the job waits.",
        lambda job: job.minimum_groups,
    ),
    ("mics_job_maximum_groups", "Most partition groups.", lambda job: job.maximum_groups),
    ("mics_job_generation", "Number of the current generation.", lambda job: job.generation),
    (
        "mics_job_last_step_timestamp_seconds",
        "When the last step was committed, as seconds since the epoch.",
        lambda job: job.last_step_time,
    ),
    (
        "mics_job_goodput_ratio",
        "Share of the time since the first commit that went into steps of usual length.",
        lambda job: job.goodput,
    ),
)

_GROUP_GAUGES: tuple[tuple[str, str, Callable[[GroupStatus], float | None]], ...] = (
    (
        "mics_job_group_sample_seconds",
        "Seconds of a group for one of its samples, without its waits for other groups.",
        lambda group: group.sample_s,
    ),
    (
        "mics_job_group_slowness_ratio",
        "How many times slower a group is than the median of the others.",
        lambda group: group.slowness,
    ),
)


class JobCollector(Collector):
    """Gives the newest readings as metrics.

    Args:
        readings: Returns them.
    """

    def __init__(self, readings: Callable[[], Readings]):
        self._readings = readings

    def describe(self) -> Iterator[Metric]:
        """Name nothing in advance, so that registering does not read the store."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield every metric of the jobs."""
        found = self._readings()
        counts = GaugeMetricFamily("mics_jobs", "Jobs by state.", labels=["state"])
        for state in JobState:
            counts.add_metric([state.value], found.states[state])
        yield counts
        states = GaugeMetricFamily(
            "mics_job_state", "1 for the state of a live job.", labels=[*JOB_LABELS, "state"]
        )
        groups = GaugeMetricFamily(
            "mics_job_groups", "Partition groups by state.", labels=[*JOB_LABELS, "state"]
        )
        for job in found.live:
            for state in JobState:
                if not state.is_final:
                    states.add_metric([job.job_id, job.name, state.value], job.state is state)
            for group_state in GroupState:
                labels = [job.job_id, job.name, group_state.value]
                groups.add_metric(labels, job.groups[group_state])
        yield states
        yield groups
        for name, words, value_of in _GAUGES:
            family = GaugeMetricFamily(name, words, labels=JOB_LABELS)
            for job in found.live:
                value = value_of(job)
                if value is not None:
                    family.add_metric([job.job_id, job.name], value)
            yield family
        for name, words, of_group in _GROUP_GAUGES:
            family = GaugeMetricFamily(name, words, labels=[*JOB_LABELS, "group_id"])
            for job in found.live:
                for group in job.members:
                    if (value := of_group(group)) is not None:
                        family.add_metric([job.job_id, job.name, str(group.group_id)], value)
            yield family
