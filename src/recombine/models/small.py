"""Networks for 28 to 64 pixels: torchvision's with the early down-sampling taken out, and two plain ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torchvision
from torch import nn

__all__ = ["cnn", "lenet5", "mobilenetv2_cifar", "resnet_cifar", "shufflenetv2_cifar", "vgg_cifar"]


def resnet_cifar(classes: int, depth: int = 18) -> nn.Module:
    """torchvision's ResNet-18/34/50 with a 3x3 stride-1 stem and no max pooling, as is usual for 32 to 64 pixels."""
    net = getattr(torchvision.models, f"resnet{depth}")(num_classes=classes)
    net.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    net.maxpool = nn.Identity()
    return net


def mobilenetv2_cifar(classes: int, width_mult: float = 1.0) -> nn.Module:
    """torchvision's MobileNetV2 with stride 1 in the stem and in the stage of 24 channels (total stride 8)."""
    net = torchvision.models.mobilenet_v2(num_classes=classes, width_mult=width_mult)
    for convolution in (net.features[0][0], net.features[2].conv[1][0]):
        convolution.stride = (1, 1)
    return net


def shufflenetv2_cifar(classes: int, width: str = "x1_0") -> nn.Module:
    """torchvision's ShuffleNetV2 (x0_5, x1_0, x1_5, x2_0) with a stride-1 stem and no max pooling (total stride 8)."""
    net = getattr(torchvision.models, f"shufflenet_v2_{width}")(num_classes=classes)
    net.conv1[0].stride = (1, 1)
    net.maxpool = nn.Identity()
    return net


def vgg_cifar(classes: int, depth: int = 16) -> nn.Module:
    """torchvision's VGG-11/13/16/19 convolutions with BatchNorm, global average pooling and one linear layer."""
    letters = {11: "A", 13: "B", 16: "D", 19: "E"}
    features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs[letters[depth]], batch_norm=True)
    for module in features:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(module.bias)
    pool, flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(OrderedDict(features=features, pool=pool, flatten=flatten, classifier=nn.Linear(512, classes)))


def cnn(classes: int, widths: Sequence[int] = (32, 64, 128, 128)) -> nn.Module:
    """3x3 convolution, BatchNorm, ReLU per width, max pooling between, global average pooling, one linear layer."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (inputs, outputs) in enumerate(zip([3, *widths[:-1]], widths, strict=True), start=1):
        layers[f"conv{i}"] = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        layers[f"bn{i}"] = nn.BatchNorm2d(outputs)
        layers[f"relu{i}"] = nn.ReLU(inplace=True)
        layers[f"pool{i}"] = nn.MaxPool2d(2) if i < len(widths) else nn.AdaptiveAvgPool2d(1)
        nn.init.kaiming_normal_(layers[f"conv{i}"].weight, mode="fan_out", nonlinearity="relu")
    layers["flatten"], layers["fc"] = nn.Flatten(), nn.Linear(widths[-1], classes)
    return nn.Sequential(layers)


def lenet5(classes: int) -> nn.Module:
    """LeNet-5 of LeCun et al. 1998 for 32 pixels: two 5x5 convolutions, then 120, 84 and `classes` units.

    Deviation: ReLU, max pooling and a linear output in place of tanh, trained subsampling and radial basis functions,
    and three input channels, as every library's LeNet has them today.
    """
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 6, 5),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(6, 16, 5),
            relu2=nn.ReLU(),
            pool2=nn.AdaptiveMaxPool2d(5),  # equals 2x2 pooling at 32 pixels, and lets other sizes in
            flatten=nn.Flatten(),
            fc1=nn.Linear(16 * 5 * 5, 120),
            relu3=nn.ReLU(),
            fc2=nn.Linear(120, 84),
            relu4=nn.ReLU(),
            fc3=nn.Linear(84, classes),
        )
    )
