"""What a process that is forked for a test would import anyway: once, in the process that all are forked from."""

import timm  # noqa: F401
import torch._dynamo  # noqa: F401  (the first optimizer imports it)
import torchvision  # noqa: F401

import recombine.patch.recipe
import recombine.pretrain.recipe
import recombine.transfer.recipe  # noqa: F401
import tests.core.fitting  # noqa: F401
