"""Settings of training: the loop, optimizers and learning-rate schedules."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from recombine.core.builds import Builds, Node
from recombine.core.settings import Settings
from recombine.run.settings import EntrySettings

__all__ = [
    *("EngineSettings", "MethodSettings", "OptimizerNode", "OptimizerSettings"),
    *("ScheduleNode", "ScheduleSettings", "TrainingSettings"),
]

Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]


class EngineSettings(Settings):
    """The training loop."""

    epochs: NotNegative = 1
    """Epochs; fractions are allowed."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 on CUDA devices that have it, else fp32. fp16 needs optimizer.fused=true to run without waiting."""
    eval_precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """What networks are measured in, whatever they are trained in: rows of a GPU agree with those of a CPU."""
    channels_last: bool = True
    """Memory layout of images and convolutions; faster nearly everywhere."""
    compile: bool = False
    """torch.compile of the method's net."""
    grad_accum_steps: Count = 1
    """Batches per optimizer step."""
    grad_clip_norm: NotNegative | None = None
    """Largest norm of the gradient."""
    ema_decay: Annotated[float, Field(ge=0, lt=1, examples=[0.999])] | None = None
    """Decay of a weight average; if set, it is what is evaluated and published."""
    eval_every: Count = 1
    """Epochs between evaluations; the end is always evaluated."""
    log_every: Count = 50
    """Optimizer steps between log points, the only ones at which the host waits for the device."""
    save_every_minutes: NotNegative = 10
    """Minutes between checkpoints."""
    save_every_steps: Count | None = None
    """Optimizer steps between checkpoints."""
    max_steps: Annotated[int, Field(ge=0)] | None = None
    """Ends training early; schedules then run over these steps."""
    max_eval_batches: Count | None = None
    """Ends evaluations early."""
    deterministic: bool = False
    """The same numbers every time on the same machine."""
    resume: Literal["auto", "never", "must"] = "auto"
    """auto: continue what is there. never: start over. must: fail if there is nothing."""
    sync_batchnorm: bool = True
    """Of several processes (torchrun): BatchNorm takes its statistics over the batch of all, as one process does."""
    keep_best: bool = True
    """Publish the best evaluated weights instead of the last, in fits that name a metric for it."""


class MethodSettings(Settings):
    """What a method does."""


class SupervisedSettings(MethodSettings, target="recombine.engine.method.Supervised"):
    """Cross entropy on the labels."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Part of the target spread over all classes."""
    batchnorm: Literal["adapt", "keep"] = "adapt"
    """adapt: running statistics follow the data. keep: they stay, for fine-tuning on few images or unusual ones."""


class OptimizerSettings(Settings):
    """A torch optimizer; `_partial_: true`, as its parameters come from the method."""

    lr: NotNegative
    """Learning rate."""
    weight_decay: NotNegative = 0.0
    """L2 penalty (sgd, adam) or decoupled decay (adamw)."""
    fused: bool | None = None
    """One kernel for all parameters."""
    foreach: bool | None = None
    """One call for all parameters."""
    maximize: bool = False
    """Climb instead of descending."""


class SGDSettings(OptimizerSettings, target="torch.optim.SGD"):
    """Stochastic gradient descent."""

    momentum: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Part of the last step that is repeated."""
    dampening: float = 0.0
    """Part of the gradient left out of the momentum."""
    nesterov: bool = False
    """Nesterov's momentum; needs momentum above 0."""

    def check(self, path: str) -> list[str]:
        """Nesterov without momentum is refused by torch."""
        wrong = self.nesterov and (self.momentum == 0 or self.dampening != 0)
        return [f"{path}.nesterov=true needs {path}.momentum above 0 and {path}.dampening=0"] if wrong else []


class AdamSettings(OptimizerSettings, target="torch.optim.Adam"):
    """Adam."""

    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = [0.9, 0.999]
    """Decay of the averages of gradient and squared gradient."""
    eps: NotNegative = 1e-8
    """Added to the denominator."""
    amsgrad: bool = False
    """The AMSGrad form."""
    decoupled_weight_decay: bool = False
    """Weight decay as AdamW has it."""


class AdamWSettings(AdamSettings, target="torch.optim.AdamW"):
    """Adam with decoupled weight decay."""


class ScheduleSettings(Settings):
    """A schedule of the learning rate, as a function of the fraction of training done."""

    warmup: NotNegative = 0
    """Linear warm-up: fraction of the training below 1, or a number of steps."""


class ConstantSettings(ScheduleSettings, target="recombine.engine.optim.constant"):
    """The learning rate stays."""


class CosineSettings(ScheduleSettings, target="recombine.engine.optim.cosine"):
    """Half a cosine down to `min_lr_ratio` times the learning rate."""

    min_lr_ratio: NotNegative = 0.0
    """Last learning rate over the first."""


class LinearSettings(CosineSettings, target="recombine.engine.optim.linear"):
    """A straight line down to `min_lr_ratio` times the learning rate."""


class StepSettings(ScheduleSettings, target="recombine.engine.optim.step"):
    """The learning rate times `gamma` at each milestone."""

    milestones: list[NotNegative] = [0.5, 0.75]
    """Shares of the training below 1, or step numbers."""
    gamma: NotNegative = 0.1
    """Factor at each milestone."""


OptimizerNode = Annotated[
    Node,
    Builds("an optimizer", "optimizer=sgd", OptimizerSettings, base="torch.optim.Optimizer", late=("params",)),
]
ScheduleNode = Annotated[
    Node,
    Builds("a schedule", "schedule=cosine", ScheduleSettings, parameters=("optimizer", "steps")),
]


class TrainingSettings(EntrySettings):
    """What every entry shares that trains."""

    engine: EngineSettings = EngineSettings()
    """The training loop."""
    optimizer: OptimizerNode
    """The optimizer."""
    schedule: ScheduleNode
    """The learning rate over the training."""
