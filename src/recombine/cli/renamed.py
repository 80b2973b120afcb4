"""Names of older versions, so that a command written for one gets the present name."""

__all__ = ["KEYS", "OPTIONS", "OVERRIDES"]

KEYS = {
    "engine.accumulate": "engine.grad_accum_steps",
    "engine.clip_norm": "engine.grad_clip_norm",
    "engine.ema": "engine.ema_decay",
    "schedule.final": "schedule.min_lr_ratio",
    "scratch.schedule.final": "scratch.schedule.min_lr_ratio",
    "retrain.schedule.final": "retrain.schedule.min_lr_ratio",
    "keep_prefix_gib": "feature_cache_gib",
    "remember": "cache_teacher_logits",
    "remember_gib": "cache_limit_gib",
    "teacher_view": "teacher_preprocessing",
    "neigh": "lime",
    "use_original": "use_target_data",
    "together": "eval_batch_networks",
    "keep": "num_saved",
    "budget_counts": "budget_unit",
    "wandb": "logger",
}
"""Setting of version 0.1 -> its name now; settings below a renamed node follow it."""
OPTIONS = {
    ("loader", "resident"): "device",
    ("engine", "exact"): "deterministic",
    ("method", "tune"): "finetune",
    ("method", "saved"): "from_file",
}
"""Group and option of version 0.1 -> the option now."""
OVERRIDES = {
    "wandb=default": "logger=wandb",
    "wandb=offline": "logger.mode=offline",
    "wandb=disabled": "logger=none",
    "wandb=none": "logger=none",
}
"""Choice of a group that has another name now -> the same choice today."""
