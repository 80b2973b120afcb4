"""Write docs/methods/patch-networks.md: what a delta-network patches in networks of many families, measured.

python scripts/patch_networks.py                  all of them (a few minutes)
python scripts/patch_networks.py resnet18 dpn68   shown, not written
"""

from __future__ import annotations

import sys
from pathlib import Path

import timm
import torch

from recombine.core.errors import ConfigError
from recombine.models.graph import trace
from recombine.patch.delta import Delta
from recombine.patch.patched import TaskNetwork

PAGE = Path(__file__).parents[1] / "docs" / "methods" / "patch-networks.md"
LISTED = """
botnet26t_256 convnext_atto convnextv2_atto cspresnet50 densenet121 dla34 dpn68 edgenext_xx_small efficientnet_b0
efficientnetv2_rw_t efficientvit_b0 ese_vovnet19b_dw fastvit_t8 fbnetc_100 gernet_s ghostnet_100 hgnetv2_b0
hrnet_w18_small inception_next_atto inception_v4 lcnet_050 mixnet_s mnasnet_small mobilenetv2_100 mobilenetv3_small_050
mobilenetv4_conv_small mobileone_s0 mobilevit_xxs nf_resnet26 poolformer_s12 rdnet_tiny regnety_002 regnetz_005
repvgg_a0 res2net50_14w_8s resnest14d resnet18 resnetv2_50 resnext50_32x4d rexnet_100 selecsls42 seresnet50 skresnet18
starnet_s1 swin_tiny_patch4_window7_224 tinynet_e vgg11_bn vit_tiny_patch16_224 xception41
"""
NAMES = LISTED.split()
HEAD = """# Networks that can be patched

Which blocks a delta-network finds in networks of many families (timm's, random weights), and whether it is the base
exactly, bit for bit, while its weights are neutral. Sub-blocks by block, from input to output. Blocks are found by
structure, not by name. LoRA (`method=lora`) and SSF (`method=ssf`) need no blocks. Every run says what it patches, and
the doubts below.

```bash
python scripts/patch_networks.py
```

| network | blocks | sub-blocks | neutral = base | doubts |
|---|---:|---|---|---|
"""


def line(name: str) -> str:
    """The network's row of the table."""
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=7).eval()
    size = net.default_cfg["input_size"][-1] if net.default_cfg.get("fixed_input_size") else 64
    try:
        graph = trace(net, size)
        patch = Delta(graph, 0, weights="base", norm="none")
    except ConfigError as error:
        return f"| {name} | 0 | | | {str(error).partition(';')[0]} |"
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        same = torch.equal(TaskNetwork(net, patch).eval()(images), net(images))
    parts = [len(block.parts) for block in graph.blocks]
    shown = ", ".join(map(str, parts)) if len(parts) < 12 else f"{parts[0]} each"
    return f"| {name} | {len(parts)} | {shown} | {'yes' if same else 'NO'} | {'; '.join(patch.doubts())} |"


def main() -> None:
    """Write the page, or show the rows of the names given."""
    names = sys.argv[1:] or NAMES
    lines = []
    for name in names:
        lines.append(line(name))
        print(lines[-1], flush=True)
    if names is NAMES:
        PAGE.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
