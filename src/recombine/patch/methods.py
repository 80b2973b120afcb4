"""The methods of a patch run by their config node: what rows call them, and what is wrong with their settings."""

from __future__ import annotations

from recombine.patch.file import KINDS
from recombine.patch.paint import ALPHAS, Paint
from recombine.run.config import DictConfig, plain

__all__ = ["problems", "row_names"]

CLASSES = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in (*KINDS.values(), Paint)}
"""By `_target_`."""


def problems(node: DictConfig) -> list[str]:
    """What is wrong with the settings of a method, as far as no network is needed to tell."""
    settings = plain(node)
    target = str(settings.get("_target_"))
    if target not in CLASSES:
        known = "delta, fc, paint, finetune, parallel_adapter, series_adapter, bn_adapt"
        own = target.startswith("recombine.patch.")  # one more way, written by a user, checks itself when it is built
        return [] if own else [f"method {target} is no way to patch; choose method=delta, or another of {known}"]
    return CLASSES[target].problems(**{key: value for key, value in settings.items() if not key.startswith("_")})


def row_names(node: DictConfig) -> dict[str, str]:
    """How rows call a method: its family, and every setting that tells it from its kin."""
    settings = plain(node)
    target = str(settings.get("_target_", "")).rpartition(".")[2]
    if target == "Delta":
        return _delta(settings)
    if target == "Paint":
        return _paint(settings)
    names = {"HeadOnly": "fc", "ResidualAdapters": f"{settings.get('position', 'parallel')}_adapter"}
    names["NormAdaptation"] = f"bn_{settings.get('mode', 'affine')}"
    return {"method": names.get(target, target), "modules": "none"}


def _delta(settings: dict) -> dict[str, str]:
    weights, skips = settings.get("weights", "delta"), settings.get("skips", "all")
    norm, strides = settings.get("norm", "last_post_act"), settings.get("strides", [2, 2])
    parts = ["delta"]
    if weights != "delta":
        parts.append(f"{skips}_{weights}")
    elif skips != "all":
        parts.append(f"{skips}_skips")
    if norm != "last_post_act":
        parts.append("no_bn" if norm == "none" else norm)
    if strides != [2, 2] and weights == "delta":
        parts.append(f"strides_{'_'.join(map(str, strides)) if isinstance(strides, list) else strides}")
    if settings.get("alpha_init", "default") != "default":
        parts.append(f"{settings['alpha_init']}_init")
    if settings.get("input_projection", "reuse_frozen") != "reuse_frozen":
        parts.append("no_projection")
    budget = settings.get("budget")
    modules = settings.get("modules", "all") if budget is None else f"within {budget}"
    return {"method": "_".join(parts), "modules": str(modules)}


def _paint(settings: dict) -> dict[str, str]:
    """A choice by another score has a key of its own: protocols differ in the one the paper takes."""
    select, alpha = settings.get("select", "harmonic_mean"), settings.get("alpha", 1.0)
    alphas = settings.get("alphas", ALPHAS)
    if select == "fixed":
        name = "finetune" if alpha == 1 else f"paint_{alpha}"
    else:
        other = isinstance(alphas, list) and alphas != list(ALPHAS)
        name = f"paint_of_{'_'.join(map(str, alphas))}" if other else "paint"
    name += "_recalibrated" if settings.get("statistics") == "recalibrated" else ""
    return {"method": name, "modules": "none"} | ({} if select == "fixed" else {"select": select})
