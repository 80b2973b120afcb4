"""Networks with their own preprocessing: timm's, torchvision's, small built-in ones, or a checkpoint file."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recombine.models.checks import check
    from recombine.models.factory import build
    from recombine.models.model import Model
    from recombine.models.overview import describe, summary
    from recombine.models.weights import save

__all__ = ["Model", "build", "check", "describe", "save", "summary"]
_MODULES = {
    "Model": "recombine.models.model",
    "build": "recombine.models.factory",
    "check": "recombine.models.checks",
    "describe": "recombine.models.overview",
    "save": "recombine.models.weights",
    "summary": "recombine.models.overview",
}


def __getattr__(name: str) -> Any:
    """Names are imported when they are used: settings can be read without torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
