"""What Ray Train's own configurations say of a job: they change its specification.

A script that called `TorchTrainer` hands the same `ScalingConfig` and `RunConfig` to `MicsTrainer`.
What they ask for that has no meaning here is refused: a setting that is silently left out would be
looked for in vain when it matters.
"""

from __future__ import annotations

from typing import Any

from ray.train import RunConfig, ScalingConfig

from mics_core.errors import Problem, SpecificationError
from mics_core.spec import JobSpec, parse_job_spec

__all__ = ["configured_spec"]

_SCALING_WITHOUT_MEANING = {
    "trainer_resources": "the driver takes no slot; set resources_per_worker.",
    "label_selector": "a partition group is placed as a whole; use a custom resource.",
    "accelerator_type": "nodes are chosen by resources; use a custom resource.",
    "topology": "workers run on CPUs and GPUs; leave it out.",
    "use_tpu": "workers run on CPUs and GPUs; leave it out.",
    "placement_strategy": "a partition group fills node after node; leave it out.",
    "elastic_resize_monitor_interval_s": "groups join as soon as they are ready; leave it out.",
}
_RUN_WITHOUT_MEANING = {
    "storage_filesystem": "storage is opened by fsspec; put a URL into storage_path.",
    "callbacks": "there are no callbacks; follow the job's events.",
    "failure_config": "lost groups are replaced, as often as it takes; leave it out.",
    "logging_config": "a run sets no level of logs; leave it out.",
    "worker_runtime_env": "workers have the environment of the script; set it in ray.init.",
}


def configured_spec(spec: JobSpec, scaling: ScalingConfig | None, run: RunConfig | None) -> JobSpec:
    """Return `spec` with what Ray's configurations say; they go before the specification.

    Args:
        spec: The job.
        scaling: `num_workers` is p times the wanted number of partition groups, or a pair for the
            smallest and the largest; `use_gpu` and `resources_per_worker` are the workers'.
        run: `name` is the job's, `storage_path` holds its checkpoints in a folder of that name,
            and `checkpoint_config.num_to_keep` of them stay.

    Raises:
        SpecificationError: They ask for what there is not, or the outcome breaks a rule.
    """
    value = spec.model_dump(mode="json")
    problems: list[Problem] = []
    if scaling is not None:
        _apply_scaling(value, scaling, problems)
    if run is not None:
        _apply_run(value, run, problems)
    if problems:
        raise SpecificationError(problems)
    return parse_job_spec(value)


def _apply_scaling(value: dict[str, Any], scaling: ScalingConfig, problems: list[Problem]) -> None:
    _refuse_set("scaling_config", scaling, ScalingConfig(), _SCALING_WITHOUT_MEANING, problems)
    resources = dict(scaling.resources_per_worker or {})
    if scaling.use_gpu:
        resources.setdefault("GPU", 1)
    if resources:
        known = value["resources"]
        known["cpus"] = float(resources.pop("CPU", known["cpus"]))
        known["gpus"] = int(resources.pop("GPU", known["gpus"]))
        known["custom"] = known["custom"] | resources
    _apply_workers(value, scaling.num_workers, problems)


def _apply_workers(
    value: dict[str, Any], num_workers: int | tuple[int, int], problems: list[Problem]
) -> None:
    field, size = "scaling_config.num_workers", value["partition_size"]
    if size == "auto":
        rule = "workers come in whole partition groups, and partition_size is 'auto'."
        remedy = "Set partition_size, or leave scaling_config out and set groups in train_config."
        problems.append(Problem(field, str(num_workers), rule, remedy))
        return
    is_range = isinstance(num_workers, tuple)
    bounds = num_workers if isinstance(num_workers, tuple) else (num_workers, num_workers)
    if bounds[0] < size or any(bound % size for bound in bounds):
        rule = f"workers come in partition groups of {size}."
        problems.append(Problem(field, str(num_workers), rule, f"Ask for a multiple of {size}."))
        return
    low, high = (bound // size for bound in bounds)
    groups = value["groups"]
    groups["wanted"] = high
    if is_range:
        groups["minimum"], groups["maximum"] = low, high
    elif groups["maximum"] is not None:
        groups["maximum"] = max(groups["maximum"], high)


def _apply_run(value: dict[str, Any], run: RunConfig, problems: list[Problem]) -> None:
    plain, checkpoints = RunConfig(), run.checkpoint_config
    _refuse_set("run_config", run, plain, _RUN_WITHOUT_MEANING, problems)
    # Ray gives every run a name with the time in it, which no later run would find again.
    default_name = (plain.name or "").partition("-")[0]
    if run.name and not run.name.startswith(f"{default_name}-"):
        value["name"] = run.name
    if run.storage_path is not None and run.storage_path != plain.storage_path:
        value["checkpoint"]["directory"] = f"{run.storage_path.rstrip('/')}/{value['name']}"
    if checkpoints is None:
        return
    if checkpoints.num_to_keep is not None:
        value["checkpoint"]["keep"] = checkpoints.num_to_keep
    if checkpoints.checkpoint_score_attribute is not None:
        rule = "the newest checkpoints stay, whatever their metrics."
        problems.append(
            Problem(
                "run_config.checkpoint_config.checkpoint_score_attribute",
                repr(checkpoints.checkpoint_score_attribute),
                rule,
                "Leave it out.",
            )
        )


def _refuse_set(
    where: str,
    config: object,
    plain: object,
    without_meaning: dict[str, str],
    problems: list[Problem],
) -> None:
    """Refuse what is set and has no meaning; Ray fills some of it in, as in a `plain` one."""
    for name, words in without_meaning.items():
        given = getattr(config, name, None)
        if given and given != getattr(plain, name, None):
            reason, _, remedy = words.partition("; ")
            rule, remedy = f"{reason}.", f"{remedy[0].upper()}{remedy[1:]}"
            problems.append(Problem(f"{where}.{name}", repr(given)[:80], rule, remedy))
