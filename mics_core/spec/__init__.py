"""The job specification and the live status: the models that every edge of the system shares."""

from mics_core.spec.checks import check_files
from mics_core.spec.job import (
    CallableData,
    CallableModel,
    CheckpointSpec,
    EngineSpec,
    FileData,
    GroupsSpec,
    JobSpec,
    OptimizerSpec,
    ResourcesSpec,
    ScheduleSpec,
    TokenizerSpec,
    TrainingSpec,
    TransformersModel,
)
from mics_core.spec.load import load_job_spec, parse_job_spec

__all__ = [
    "CallableData",
    "CallableModel",
    "CheckpointSpec",
    "EngineSpec",
    "FileData",
    "GroupsSpec",
    "JobSpec",
    "OptimizerSpec",
    "ResourcesSpec",
    "ScheduleSpec",
    "TokenizerSpec",
    "TrainingSpec",
    "TransformersModel",
    "check_files",
    "load_job_spec",
    "parse_job_spec",
]
