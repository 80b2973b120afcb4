"""Training: everything that changes while one fit runs, and how it is saved, restored and published."""

from __future__ import annotations

import time
import warnings
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from recombine.core import distributed
from recombine.core.counter_rng import key
from recombine.core.errors import ConfigError, NotFinite
from recombine.core.random_state import preserved_rng, restore_rng, rng_state, seed_everything
from recombine.core.types import Loader
from recombine.engine import checkpoint
from recombine.engine.evaluate import autocast, resolve
from recombine.engine.logging import MetricLogger, StepPlan
from recombine.engine.method import Method
from recombine.engine.optim import ModelEma
from recombine.engine.sync_batchnorm import local_batchnorm, synchronise_batchnorm

if TYPE_CHECKING:
    from recombine.engine.settings import EngineSettings
    from recombine.run.run import Run

__all__ = ["Fit", "Training"]


class Fit(NamedTuple):
    """Result of a fit."""

    net: nn.Module
    """The method's net with the published weights, in eval mode."""
    metrics: dict[str, float]
    """Those of the evaluation of these weights; empty without one."""
    history: list[dict[str, float]]
    """One record per epoch: epoch, step, lr, train/..., and val/... or test/... where evaluated."""
    steps: int
    seconds: float
    """Spent training, evaluations and checkpoints left out, over all sessions."""
    images_per_second: float
    """Over all processes."""


class Training:
    """One fit: its method, optimizer, position and numbers."""

    def __init__(
        self,
        cfg: EngineSettings,
        run: Run,
        method: Method,
        train: Loader,
        optimizer: Callable,
        schedule: Callable,
        name: str,
        best: str | None,
    ) -> None:
        self.cfg, self.run, self.train, self.name, self.best_name = cfg, run, train, name, best
        self.folder = run.dir / "fits" / name
        self.plan = _plan(cfg, run, train)
        self.method = method.to(run.device)
        if cfg.channels_last:
            self.method.to(memory_format=torch.channels_last)
        self.method.train()  # freezes what is frozen, before the parameters are collected
        self.optimizer = self._make_optimizer(optimizer)
        self.parameters = [value for group in self.optimizer.param_groups for value in group["params"]]
        self.schedule = schedule(self.optimizer, max(1, self.plan.total))
        self.fingerprint = checkpoint.fingerprint(self, schedule)
        self.autocast = autocast(cfg.precision, run.device)
        fp16 = resolve(cfg.precision, run.device) == "fp16"
        self.scaler = torch.amp.GradScaler(run.device.type) if fp16 else None
        self.averaged = None if cfg.ema_decay is None else ModelEma(self.method.net, cfg.ema_decay)
        self.module = self._wrapped()
        self.journal = MetricLogger(name, self.plan, run.tracker, shown=run.main)
        self.step = 0
        self.complete = False
        """Whether every parameter that trains was seen to get a gradient."""
        self.lr = self.optimizer.param_groups[0]["lr"]
        """Learning rate of the first parameter group in the last step."""
        self.evaluated = -1
        self.metrics: dict[str, float] = {}
        self.best: dict[str, Any] | None = None
        self.saved_at = time.monotonic()

    def _make_optimizer(self, optimizer: Callable) -> torch.optim.Optimizer:
        groups = self.method.parameter_groups()
        if not groups:
            raise ConfigError(f"fit {self.name}: {type(self.method).__name__} has no parameter that is trained")
        made = optimizer(groups)
        for group in made.param_groups:
            group["lr"] *= group.get("lr_scale", 1)
        return made

    def _wrapped(self) -> nn.Module:
        if self.cfg.compile:
            self.method.net.compile(dynamic=False)
        if self.run.world == 1:
            return self.method
        if self.cfg.sync_batchnorm:
            synchronise_batchnorm(self.method)
        # the whole method, so that its loss is computed inside; frozen parts have no gradients to exchange
        devices = [torch.cuda.current_device()] if self.run.device.type == "cuda" else None
        # statistics are the same everywhere already, and a memory is gathered, not replaced by the first process's
        broadcast = not self.cfg.sync_batchnorm
        with warnings.catch_warnings():  # torch 2.15 renames the option in part; older versions know this name alone
            warnings.filterwarnings("ignore", ".*broadcast_buffers", FutureWarning)
            return DistributedDataParallel(self.method, device_ids=devices, broadcast_buffers=broadcast)

    def begin_epoch(self) -> int:
        """Prepare the method for (the rest of) an epoch; returns the batch to start at."""
        epoch = self.plan.epoch(self.step)
        with preserved_rng(self.run.device):  # what the hook draws depends on the epoch, not on where one resumed
            seed_everything(key(self.run.seed, epoch, zlib.crc32(self.name.encode())))
            self.method.on_epoch(epoch)
        self.module.train()
        return self.plan.first_batch(self.step)

    def synchronised(self, last: bool) -> AbstractContextManager:
        """Exchange gradients between processes only in the last part of a step."""
        return nullcontext() if last or self.module is self.method else self.module.no_sync()  # type: ignore[operator]

    def backward(self, loss: Tensor, parts: int) -> None:
        """Add the gradients of one of `parts` batches, whose losses are averaged."""
        if parts > 1:
            loss = loss / parts
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def update(self) -> None:
        """Apply the gradients; nothing here waits for the device."""
        if not self.complete:
            self._check_gradients()
        if self.scaler is None:
            self.journal.interval.add_gradient(self._clip(), self.step)
            self.optimizer.step()
        else:  # gradients that overflow are expected here: the scaler skips the step
            if self.cfg.grad_clip_norm is not None:
                self.scaler.unscale_(self.optimizer)
                self._clip()
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad()
        self.lr = self.optimizer.param_groups[0]["lr"]
        self.schedule.step()
        if self.averaged is not None:
            self.averaged.update()
        self.method.after_update(self.step)
        self.step += 1

    def _check_gradients(self) -> None:
        """ConfigError if a parameter trains that takes no part in the loss: processes would wait for its gradient."""
        if idle := self.method.without_gradient(self.parameters):
            some = ", ".join(idle[:5]) + (", ..." if len(idle) > 5 else "")
            raise ConfigError(
                f"fit {self.name}: {len(idle)} parameters train that the loss of {type(self.method).__name__} does not "
                f"reach ({some}); freeze them: requires_grad_(False)"
            )
        self.complete = True

    def _clip(self) -> Tensor:
        norm = get_total_norm([value.grad for value in self.parameters if value.grad is not None])
        if self.cfg.grad_clip_norm is not None:
            clip_grads_with_norm_(self.parameters, self.cfg.grad_clip_norm, norm)
        return norm

    def evaluation_due(self) -> bool:
        """Whether the weights of this step are to be evaluated and were not."""
        epochs, inside = divmod(self.step, self.plan.steps_per_epoch)
        regular = self.step > 0 and inside == 0 and epochs % self.cfg.eval_every == 0
        return self.evaluated != self.step and (regular or self.step == self.plan.total)

    def evaluate(self, function: Callable[[nn.Module], dict[str, float]]) -> None:
        """Measure the weights that would be published now, and keep them if they are the best."""
        swapped = nullcontext() if self.averaged is None else self.averaged.swapped()
        with preserved_rng(self.run.device), swapped:
            self.method.eval()
            self.metrics = function(self.method.net)
            if self.best_name is not None and self.cfg.keep_best:
                self._keep_best(self.best_name.removeprefix("-"), -1 if self.best_name.startswith("-") else 1)
        self.evaluated = self.step
        self.journal.evaluated(self.step, self.metrics, _section(function))

    def _keep_best(self, name: str, sign: int) -> None:
        if name not in self.metrics:
            raise ConfigError(
                f"best={name} is not measured; the evaluation gives {', '.join(self.metrics) or 'nothing'}"
            )
        value = sign * self.metrics[name]
        if self.best is None or value > self.best["value"]:
            net = {key: tensor.detach().to("cpu", copy=True) for key, tensor in self._net_state().items()}
            self.best = {"value": value, "metrics": self.metrics, "net": net}

    def _net_state(self) -> dict[str, Tensor]:
        state = self.method.trained_state()
        return {key.removeprefix("net."): value for key, value in state.items() if key.startswith("net.")}

    def step_save_due(self) -> bool:
        """Whether the step number asks for a checkpoint; all processes agree."""
        return self.cfg.save_every_steps is not None and self.step % self.cfg.save_every_steps == 0

    def save_due(self) -> bool:
        """Whether a checkpoint is to be written now, by step or by the time since the last one."""
        return self.step_save_due() or time.monotonic() - self.saved_at > 60 * self.cfg.save_every_minutes

    def save(self, finished: bool = False) -> None:
        """Write a checkpoint; raises NotFinite rather than replace a good one by weights that are not finite."""
        self.journal.stop_clock()
        worst = torch.stack(torch._foreach_norm([value.detach() for value in self.parameters], float("inf")))
        if not worst.isfinite().all():
            self.journal.read(self.step, self.lr)  # names the step where it began
            raise NotFinite("weights", self.step - 1)
        mine = {"rng": rng_state(self.run.device), "interval": self.journal.interval.state()}
        processes = distributed.gather(mine)
        if self.run.main:
            state = {name: part.state_dict() for name, part in self._parts().items()}
            position = {"step": self.step, "evaluated": self.evaluated, "metrics": self.metrics, "best": self.best}
            trained = {"method": self.method.trained_state(), "journal": self.journal.state(), "processes": processes}
            checkpoint.save(
                self.folder, {**position, **trained, **state, "fingerprint": self.fingerprint, "finished": finished}
            )
        distributed.barrier()  # a process that ends now may take the writing one with it
        self.saved_at = time.monotonic()
        self.journal.start_clock()

    def restore(self) -> bool:
        """Continue from this fit's checkpoint, or seed a fresh start; returns whether the fit is finished."""
        if self.cfg.resume == "never" and self.run.main:
            checkpoint.remove(self.folder)
        distributed.barrier()
        state = checkpoint.load_latest(self.folder)
        if state is None and self.cfg.resume == "must" and checkpoint.exists(self.folder):
            raise ConfigError(
                f"engine.resume=must: no checkpoint in {self.folder} is usable; engine.resume=auto starts over"
            )
        if state is None:
            seed_everything(key(self.run.seed, self.run.rank, zlib.crc32(self.name.encode())))
            return False
        problems = checkpoint.differences(state["fingerprint"], self.fingerprint)
        if problems:
            head = f"{self.folder} holds another training; engine.resume=never starts over"
            raise ConfigError("\n  ".join([head, *problems]))
        self.step, self.evaluated, self.metrics, self.best = (
            state[name] for name in ("step", "evaluated", "metrics", "best")
        )
        self.method.load_state_dict(state["method"], strict=False)  # the fingerprint has compared keys and shapes
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.journal.load(state["journal"])
        if len(state["processes"]) == self.run.world:
            mine = state["processes"][self.run.rank]
            restore_rng(mine["rng"], self.run.device)
            self.journal.interval.load(mine["interval"], self.run.device)
        else:  # another number of processes: same samples, but other dropout masks
            seed_everything(key(self.run.seed, self.run.rank, self.step))
        return state["finished"]

    def _parts(self) -> dict[str, Any]:
        parts = {"optimizer": self.optimizer, "schedule": self.schedule}
        optional = {"scaler": self.scaler, "averaged": self.averaged}
        return parts | {name: part for name, part in optional.items() if part is not None}

    def result(self) -> Fit:
        """Put the published weights into the net."""
        metrics = self.metrics
        if self.best is not None:
            self.method.net.load_state_dict(self.best["net"], strict=False)
            metrics = self.best["metrics"]
        elif self.averaged is not None:
            self.averaged.publish()
        self.method.eval()
        local_batchnorm(self.method)
        journal = self.journal
        self.run.stats["images_per_second"] = journal.images_per_second
        return Fit(self.method.net, metrics, journal.history, self.step, journal.seconds, journal.images_per_second)


def _section(evaluate: Callable) -> str:
    """Where charts show what `evaluate` measures: test if its loader has test images, else val."""
    loader = getattr(evaluate, "loader", None) or getattr(evaluate, "keywords", {}).get("loader")
    split = getattr(loader, "split", None)
    return "test" if getattr(split, "name", "") == "test" else "val"


def _plan(cfg: EngineSettings, run: Run, train: Loader) -> StepPlan:
    if len(train) == 0:
        raise ConfigError(
            f"{train.samples} training samples do not fill one batch; lower batch_size={train.batch_size}"
        )
    if train.batch_size % run.world:
        raise ConfigError(f"batch_size={train.batch_size} cannot be shared equally by {run.world} processes")
    return StepPlan(len(train), train.batch_size, cfg.grad_accum_steps, cfg.epochs, cfg.max_steps)
