"""Networks with their own preprocessing: timm's, torchvision's, small built-in ones, or a checkpoint file."""

from src.models.build import build, check
from src.models.model import Model
from src.models.summary import describe, summary
from src.models.weights import save

__all__ = ["Model", "build", "check", "describe", "save", "summary"]
