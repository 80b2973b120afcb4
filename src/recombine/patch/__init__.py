"""Delta-Patching: small removable additions that teach a frozen network new tasks.

from recombine import patch

patched = patch.create(timm_model, "delta", classes=5)      # train it: patch.fit, or a loop of your own
patch.save(patched, "flowers.safetensors", name="flowers", class_names=names)

network = patch.attach(timm_model, "flowers.safetensors")   # network(x) is the base, network(x, "flowers") the task
network.attach("cars.safetensors", "cars")                  # one more
network.list()                                              # the cards of all patches
network.detach("cars")                                      # takes off one
timm_model = network.restore()                              # takes off everything: bit for bit what it was
"""

from typing import TYPE_CHECKING

from recombine.core.lazy import lazy_names

if TYPE_CHECKING:
    from recombine.patch.creation import create, fit
    from recombine.patch.merging import merge
    from recombine.patch.patched import Patch, TaskNetwork
    from recombine.patch.patched_network import PatchedNetwork, attach
    from recombine.patch.serialization import load, read_card, save

__all__ = [
    "Patch",
    "PatchedNetwork",
    "TaskNetwork",
    "attach",
    "create",
    "fit",
    "load",
    "merge",
    "read_card",
    "save",
]
_MODULES = {
    "Patch": "recombine.patch.patched",
    "PatchedNetwork": "recombine.patch.patched_network",
    "TaskNetwork": "recombine.patch.patched",
    "attach": "recombine.patch.patched_network",
    "create": "recombine.patch.creation",
    "fit": "recombine.patch.creation",
    "load": "recombine.patch.serialization",
    "merge": "recombine.patch.merging",
    "read_card": "recombine.patch.serialization",
    "save": "recombine.patch.serialization",
}
__getattr__ = lazy_names(__name__, _MODULES)
