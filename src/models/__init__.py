"""Networks with their own preprocessing: any timm or torchvision name, the small built-in nets, or a checkpoint file."""

from src.models.build import build, check
from src.models.model import Model
from src.models.summary import describe, summary
from src.models.weights import save

__all__ = ["Model", "build", "check", "describe", "save", "summary"]
