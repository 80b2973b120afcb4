"""Networks with their own preprocessing: timm's, torchvision's, small built-in ones, or a checkpoint file."""

from typing import TYPE_CHECKING

from recombine.core.lazy import lazy_names

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
__getattr__ = lazy_names(__name__, _MODULES)
