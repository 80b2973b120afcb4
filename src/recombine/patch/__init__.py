"""Delta-patching: small removable additions that teach a frozen network new tasks.

from recombine import patch

patched = patch.apply(timm_model, "flowers.safetensors")   # patched(x) is the base, patched(x, "flowers") the task
patched.list()                                             # the cards of all patches
timm_model = patched.detach()                              # as it was, bit for bit
"""

from recombine.patch.file import System, apply, load, read_card, save
from recombine.patch.patched import Patch, Patched

__all__ = ["Patch", "Patched", "System", "apply", "load", "read_card", "save"]
