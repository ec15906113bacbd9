"""The one job specification, used alike by REST, YAML files, the command line and Python.

Only rules that need nothing but the specification itself are checked here. Rules about files are in
`mics_core.spec.checks`, rules about the cluster in `mics_core.planner.layout`; all of them run
before anything is started.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    model_validator,
)

from mics_core.spec.auto import CountOrAuto, SwitchOrAuto
from mics_core.spec.presets import ask_for_sizes_or_preset, expand_preset
from mics_core.spec.rules import RuleError

CALLABLE_PATTERN = r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$"


class SpecModel(BaseModel):
    """Base of all parts of the specification: immutable, and unknown fields are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class TransformersModel(SpecModel):
    """A model built from a `transformers` configuration, with fresh weights or given ones."""

    model_config = ConfigDict(json_schema_extra=ask_for_sizes_or_preset)

    preset: str | None = None
    """A model by its name, such as `gpt2-small` or `bert-10b`; all other fields then have its
    values unless they are set here."""
    family: Literal["gpt2", "llama", "bert", "roberta"]
    """Architecture family."""
    hidden_size: int = Field(gt=0)
    """Width of the residual stream."""
    num_layers: int = Field(gt=0)
    """Number of transformer blocks."""
    num_heads: int = Field(gt=0)
    """Attention heads of each block; must divide `hidden_size`."""
    intermediate_size: int | None = Field(default=None, gt=0)
    """Width of the feed-forward layer; the default is 4 × `hidden_size`."""
    vocab_size: int | None = Field(default=None, gt=0)
    """Rows of the embedding; the default is the tokenizer's vocabulary."""
    tie_embeddings: bool = True
    """Share the input embedding with the output projection."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Probability of every dropout of the model."""
    weights: str | None = Field(default=None, min_length=1)
    """Folder, seen by all nodes, with the safetensors of `save_pretrained`: training starts from
    these weights. The sizes here must be those of its `config.json`. Fresh weights if left out."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further keys of the family's `transformers` configuration, passed through as they are."""

    @model_validator(mode="before")
    @classmethod
    def _preset_is_expanded(cls, value: Any) -> Any:
        return expand_preset(value)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> TransformersModel:
        if self.hidden_size % self.num_heads:
            raise RuleError(
                f"num_heads ({self.num_heads}) must divide hidden_size ({self.hidden_size}).",
                "Choose a number of heads that divides the width.",
            )
        return self


class CallableModel(SpecModel):
    """A user's own model: `module:callable`, called with `arguments`, returns an `nn.Module`."""

    callable: str = Field(pattern=CALLABLE_PATTERN)
    """Where the builder is, as `package.module:function`."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the builder."""


class FileData(SpecModel):
    """Training data read from files."""

    kind: Literal["text", "jsonl", "parquet", "tokens"]
    """`text`: each file is a document. `jsonl`, `parquet`: each row is. `tokens`: raw token ids."""
    paths: list[str] = Field(min_length=1)
    """Paths or globs (`**` crosses folders); the files are read in sorted order."""
    column: str = Field(default="text", min_length=1)
    """For `jsonl` and `parquet`: the field that holds the text."""
    token_dtype: Literal["uint16", "uint32", "int32", "int64"] = "uint16"
    """For `tokens`: the type of the ids in raw files; `.npy` files bring their own."""


class CallableData(SpecModel):
    """A user's own data: `module:callable` returns a sized, indexable collection of samples."""

    kind: Literal["callable"] = "callable"
    """Marks this form of data."""
    callable: str = Field(pattern=CALLABLE_PATTERN)
    """Where the builder is, as `package.module:function`."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the builder."""


class TokenizerSpec(SpecModel):
    """How text becomes token ids."""

    kind: Literal["bytes", "file"] = "bytes"
    """`bytes`: ids 0 to 255 are the bytes, 256 ends a document. `file`: a `tokenizers` file."""
    path: str | None = None
    """For `file`: the `tokenizer.json`."""
    end_of_document: str | None = None
    """For `file`: the token put after every document; none if left out."""

    @model_validator(mode="after")
    def _path_where_needed(self) -> TokenizerSpec:
        if self.kind == "file" and not self.path:
            raise RuleError("kind 'file' needs a path.", "Name the tokenizer.json in `path`.")
        if self.kind == "bytes" and (self.path or self.end_of_document):
            raise RuleError(
                "kind 'bytes' takes neither path nor end_of_document.",
                "Set kind to 'file' or leave them out.",
            )
        return self


class OptimizerSpec(SpecModel):
    """The optimizer and its constants."""

    kind: Literal["adamw", "sgd"] = "adamw"
    """Update rule."""
    learning_rate: float = Field(default=3e-4, gt=0.0)
    """Peak learning rate; the schedule scales it."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the two moments, each in [0, 1)."""
    eps: float = Field(default=1e-8, gt=0.0)
    """AdamW's term against division by zero."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """Weight decay: decoupled for AdamW, added to the gradient for SGD, as in PyTorch."""
    momentum: float = Field(default=0.0, ge=0.0, lt=1.0)
    """SGD's momentum."""

    @model_validator(mode="after")
    def _betas_below_one(self) -> OptimizerSpec:
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            rule = f"betas {self.betas} must each be in [0, 1)."
            raise RuleError(rule, "The usual are 0.9, 0.95.")
        return self


class ScheduleSpec(SpecModel):
    """The learning rate as a function of the step alone."""

    kind: Literal["constant", "linear", "cosine"] = "constant"
    """Shape after the warm-up."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up from zero."""
    final_fraction: float = Field(default=0.0, ge=0.0, le=1.0)
    """Learning rate at the last step as a fraction of the peak (`linear` and `cosine`)."""


class TrainingSpec(SpecModel):
    """What one training run computes; the same for every number of workers."""

    sequence_length: int = Field(gt=0)
    """Tokens in one sample."""
    global_batch_size: int = Field(gt=0, le=200_000)
    """Samples in one optimizer step, over all partition groups. The bound keeps the workers' count
    of the samples used exact in double precision."""
    micro_batch_size: CountOrAuto
    """Samples that one worker takes at a time. A partition group of p workers runs p times as many
    side by side; that is one micro-batch of the group. `auto`: the planner's choice."""
    steps: int = Field(gt=0)
    """Optimizer steps of the run."""
    objective: Literal["causal", "masked"] | None = None
    """Language-modelling loss; the default is `masked` for bert and roberta, else `causal`."""
    optimizer: OptimizerSpec = OptimizerSpec()
    """The optimizer."""
    schedule: ScheduleSpec = ScheduleSpec()
    """The learning-rate schedule."""
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    """`bf16`: parameters and activations in bf16, gradient reduction and optimizer in fp32.
    There is no fp16, and so no loss scale that a run would have to keep."""
    gradient_clipping: float | None = Field(default=None, gt=0.0)
    """Largest global gradient norm; longer gradients are scaled down to it."""
    activation_checkpointing: SwitchOrAuto = False
    """Recompute each block's activations in backward instead of keeping them. `auto`: the
    planner's choice."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Source of weights, data order and dropout."""

    determinism: Literal["relaxed", "bitwise"] = "relaxed"
    """`bitwise`: the parameters are the same to the bit for every number of partition groups, and
    whatever joins and is lost on the way, for one partition size and one kind of node. The second
    hop then sends more and hides nothing (docs/architecture.md says how much). `relaxed`: the order
    of additions follows the groups, which shows in the last bits."""

    @model_validator(mode="after")
    def _micro_batches_divide_the_batch(self) -> TrainingSpec:
        if self.micro_batch_size != "auto" and self.global_batch_size % self.micro_batch_size:
            raise RuleError(
                f"micro_batch_size ({self.micro_batch_size}) must divide global_batch_size"
                f" ({self.global_batch_size}).",
                f"Choose a global batch size that is a multiple of {self.micro_batch_size}.",
            )
        if self.schedule.warmup_steps > self.steps:
            raise RuleError(
                f"schedule.warmup_steps ({self.schedule.warmup_steps}) must not exceed steps"
                f" ({self.steps}).",
                "Shorten the warm-up or train for longer.",
            )
        return self

    @property
    def settled_micro_batch_size(self) -> int:
        """The micro-batch size, where the layout has been settled: workers see no other."""
        assert self.micro_batch_size != "auto", "the layout has not been settled"
        return self.micro_batch_size

    @property
    def settled_activation_checkpointing(self) -> bool:
        """Whether activations are recomputed, where the layout has been settled."""
        assert self.activation_checkpointing != "auto", "the layout has not been settled"
        return self.activation_checkpointing


class GroupsSpec(SpecModel):
    """How many partition groups the run may have, wants, and needs."""

    minimum: int = Field(default=1, gt=0)
    """Fewer living groups than this and the run waits."""
    wanted: int = Field(default=1, gt=0)
    """Groups asked for at the start; scaling changes it later."""
    maximum: int | None = Field(default=None, gt=0)
    """Upper bound of scaling; the default is `wanted`."""

    silence_s: float = Field(default=15.0, ge=1.0)
    """How long the others wait for a group that makes no progress, in a step or between two; where
    steps are long, five times their usual time. Then they regroup, and if it has not answered after
    as long again it is evicted and replaced."""
    first_step_s: float = Field(default=120.0, ge=1.0)
    """The same for the first step that a group computes, in which blocks may be compiled; never
    less than `silence_s` gives. Where groups were lost, those that are left have computed before.
    """

    start_s: float = Field(default=600.0, ge=1.0)
    """How long a group that has its nodes may take until its workers run, and then as long again
    until they are ready: they load their code, restore a checkpoint or build the first weights, and
    compile. Then it is evicted, and another attempt begins after a growing pause. Where no group
    has done a step yet, all of them may be silent for as long in their first one."""

    @model_validator(mode="after")
    def _ordered(self) -> GroupsSpec:
        if not self.minimum <= self.wanted <= self.upper_bound:
            raise RuleError(
                f"minimum ({self.minimum}) ≤ wanted ({self.wanted}) ≤ maximum"
                f" ({self.upper_bound}) must hold.",
                "Put the three in this order.",
            )
        return self

    @property
    def upper_bound(self) -> int:
        """The largest number of groups that scaling may ask for."""
        return self.wanted if self.maximum is None else self.maximum


class ResourcesSpec(SpecModel):
    """What Ray sets aside for each worker."""

    cpus: float = Field(default=1.0, gt=0.0)
    """CPU slots."""
    gpus: int = Field(default=0, ge=0, le=1)
    """GPUs: 1 trains on CUDA with NCCL, 0 on the CPU with gloo."""
    memory_gib: float | None = Field(default=None, gt=0.0)
    """Memory of one worker in GiB, for the planner; the default is read from the cluster."""
    custom: dict[str, float] = Field(default_factory=dict)
    """Ray's custom resources."""
    cluster: str | None = Field(default=None, min_length=1)
    """What the planner knows of the cluster: a cluster file, as `mics probe` writes it, or a name
    such as `p4d.24xlarge`. With it the planner chooses by predicted speed, without it by memory."""


class CheckpointSpec(SpecModel):
    """Durable checkpoints."""

    directory: str | None = None
    """Folder that all nodes see; without it nothing is written."""
    interval_steps: int = Field(default=100, gt=0)
    """Steps between two checkpoints; one more is written after the last step."""
    keep: int = Field(default=2, gt=0)
    """How many complete checkpoints stay."""
    resume: bool = True
    """Continue from the newest complete checkpoint in the folder, if there is one. With `false` a
    folder that holds checkpoints is refused."""


class EngineSpec(SpecModel):
    """How the engine moves and keeps the model states. Nothing here changes what is computed."""

    reshard: Literal["auto", "always", "node", "never"] = "auto"
    """What stays of gathered parameters until the step's end. `always`: nothing but the shard.
    `node`: what came from other nodes, 1/k of each unit for k workers a node, so that nodes
    exchange parameters once a step. `never`: all of them. `auto`: the planner's choice."""
    accumulation: Literal["auto", "group", "node"] = "auto"
    """Where the gradients of micro-batches add up. `group`: in the worker's shard. `node`: inside
    the node, 1/k of the gradient a worker, so that a partition group's nodes exchange gradients
    once a step. `auto`: the planner's choice."""
    hierarchical: Literal["auto", "always", "never"] = "auto"
    """Whether the collectives of a partition group over several nodes go through an inter-node and
    an intra-node stage. `auto`: the planner's choice, for each collective and message size."""
    bucket_mib: float = Field(default=4.0, gt=0.0)
    """Gradients go across partition groups in buckets of whole units of at least this size."""
    offload_optimizer: bool = False
    """Keep the shards and the optimizer's state in the host's memory, and update there. Frees the
    GPU's memory for a slower update; on the CPU it only costs a copy."""
    compile: bool = False
    """Compile each block with `torch.compile`."""
    reuse_gradients: bool = True
    """When a group is lost, the others go on with what they have computed of that step. Costs a
    copy of the gradient's shard in the host's memory, but with `determinism: bitwise`."""

    @model_validator(mode="after")
    def _node_needs_stages(self) -> EngineSpec:
        for field in ("reshard", "accumulation"):
            if getattr(self, field) == "node" and self.hierarchical == "never":
                raise RuleError(
                    f"{field} 'node' needs the collectives in two stages, which hierarchical"
                    " 'never' forbids.",
                    f"Leave hierarchical at 'auto', or set {field} to 'auto'.",
                )
        return self


def _kind_of_model(value: Any) -> str:
    has_callable = "callable" in value if isinstance(value, dict) else hasattr(value, "callable")
    return "callable" if has_callable else "transformers"


def _kind_of_data(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    has_callable = "callable" in value if isinstance(value, dict) else hasattr(value, "callable")
    return "callable" if kind == "callable" or (kind is None and has_callable) else "files"


ModelSpec = Annotated[
    Annotated[TransformersModel, Tag("transformers")] | Annotated[CallableModel, Tag("callable")],
    Discriminator(_kind_of_model),
]
DataSpec = Annotated[
    Annotated[FileData, Tag("files")] | Annotated[CallableData, Tag("callable")],
    Discriminator(_kind_of_data),
]


LabelName = Annotated[
    str, StringConstraints(max_length=63, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")
]
LabelValue = Annotated[str, StringConstraints(max_length=200, pattern=r"^[A-Za-z0-9 ._/:@+=-]*$")]


class JobSpec(SpecModel):
    """A training job: what to train, on which data, how, and over how many groups."""

    name: str = Field(min_length=1, max_length=100)
    """A name for people; need not be unique."""
    labels: dict[LabelName, LabelValue] = Field(default_factory=dict, max_length=32)
    """Words to find the job by, such as `team: search`: names of letters, digits and `._/-`, values
    also of spaces and `:@+=`."""
    model: ModelSpec
    """The model."""
    data: DataSpec
    """The training data."""
    tokenizer: TokenizerSpec = TokenizerSpec()
    """How text becomes token ids."""
    training: TrainingSpec
    """What is computed."""
    partition_size: CountOrAuto = "auto"
    """Workers in one partition group (p). `auto` takes the fastest that holds the model where
    `resources.cluster` is given, else the smallest."""
    groups: GroupsSpec = GroupsSpec()
    """How many partition groups."""
    resources: ResourcesSpec = ResourcesSpec()
    """What each worker gets."""
    engine: EngineSpec = EngineSpec()
    """How the engine moves and keeps the model states."""
    checkpoint: CheckpointSpec = CheckpointSpec()
    """Durable checkpoints."""

    @model_validator(mode="after")
    def _batch_holds_the_groups(self) -> JobSpec:
        if self.partition_size != "auto":
            self.num_micro_batches(self.partition_size)
        return self

    def num_micro_batches(self, partition_size: int, micro_batch_size: int | None = None) -> int:
        """Return the micro-batches of one step, each run by one group of `partition_size` workers.

        Args:
            partition_size: p.
            micro_batch_size: Samples that one worker takes at a time; by default the job's own, or
                1 while that is `auto`.

        Raises:
            RuleError: The global batch is no whole number of them, or the largest number of
                groups leaves a group without one.
        """
        training = self.training
        if micro_batch_size is None:
            stated = training.micro_batch_size
            micro_batch_size = 1 if stated == "auto" else stated
        group_samples = partition_size * micro_batch_size
        if training.global_batch_size % group_samples:
            raise RuleError(
                f"training.global_batch_size ({training.global_batch_size}) must be a multiple of"
                f" partition_size × micro_batch_size ({partition_size} ×"
                f" {micro_batch_size} = {group_samples}).",
                f"Choose {-(-training.global_batch_size // group_samples) * group_samples}, or a"
                " smaller micro-batch.",
            )
        num_micro_batches = training.global_batch_size // group_samples
        if num_micro_batches < self.groups.upper_bound:
            raise RuleError(
                f"groups.maximum ({self.groups.upper_bound}) must not exceed the"
                f" {num_micro_batches} micro-batches of a step (global_batch_size"
                f" {training.global_batch_size} / {group_samples}), or a group would have nothing"
                " to do.",
                "Lower groups.maximum or micro_batch_size, or raise global_batch_size.",
            )
        return num_micro_batches

    @property
    def objective(self) -> Literal["causal", "masked"]:
        """The language-modelling loss, with the family's default filled in."""
        if self.training.objective is not None:
            return self.training.objective
        family = self.model.family if isinstance(self.model, TransformersModel) else ""
        return "masked" if family in ("bert", "roberta") else "causal"
