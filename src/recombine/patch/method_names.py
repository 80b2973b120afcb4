"""What rows call the methods of a patch run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from recombine.core.settings import to_dict
from recombine.patch.settings import ALPHAS, END_TO_END, regularizer_settings

__all__ = ["regularizer_names", "row_names"]


def row_names(node: Mapping[str, Any]) -> dict[str, str]:
    """Cells of a method node: its family, and every setting in which it differs from the default."""
    settings = to_dict(node)
    target = str(settings.get("_target_", "")).rpartition(".")[2]
    if target == "Delta":
        return _delta(settings)
    if target == "Paint":
        return _paint(settings)
    names = {"HeadOnly": "fc", "ResidualAdapters": f"{settings.get('position', 'parallel')}_adapter"}
    names |= {"NormAdaptation": f"bn_{settings.get('mode', 'affine')}", "ScaleShift": "ssf"}
    alpha = "" if settings.get("alpha") is None else f"_alpha_{settings['alpha']}"
    names["LoRA"] = f"lora_{settings.get('rank', 4)}{alpha}"
    return {"method": names.get(target, target), "modules": "none"}


def regularizer_names(cfg: Mapping[str, Any]) -> dict[str, str]:
    """What network and patch are trained with, by its name in config/patch/regularizer; {} where the base is frozen."""
    if cfg["protocol"] not in END_TO_END:
        return {}
    settings = to_dict(cfg["regularizer"])
    target = str(settings["_target_"]).rpartition(".")[2]
    name = "none" if target == "EndToEnd" else re.sub(r"(?<=[a-z])(?=[A-Z])", "_", target).lower()
    fields = regularizer_settings(settings).model_fields
    changed = {key: settings[key] for key, field in fields.items() if settings.get(key, field.default) != field.default}
    return {"regularizer": "_".join([name, *(f"{key}_{value}" for key, value in changed.items())])}


def _delta(settings: Mapping[str, Any]) -> dict[str, str]:
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
    modules = "+".join(modules) if isinstance(modules, list) else str(modules)
    return {"method": "_".join(parts), "modules": modules}


def _paint(settings: Mapping[str, Any]) -> dict[str, str]:
    """`select` is a cell key: the paper selects by another mean in each protocol."""
    select, alpha = settings.get("select", "harmonic_mean"), settings.get("alpha", 1.0)
    alphas = settings.get("alphas", ALPHAS)
    if select == "fixed":
        name = "finetune" if alpha == 1 else f"paint_{alpha}"
    else:
        other = isinstance(alphas, list) and alphas != list(ALPHAS)
        name = f"paint_of_{'_'.join(map(str, alphas))}" if other else "paint"
    name += "_recalibrated" if settings.get("statistics") == "recalibrated" else ""
    return {"method": name, "modules": "none"} | ({} if select == "fixed" else {"select": select})
