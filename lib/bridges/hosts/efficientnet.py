"""EfficientNet-Lite0 (Tan and Le 2019, without squeeze-and-excite), written out so that no foreign code has to run."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import pad, relu6

SIDE = 224  # pixels
# Of each stage: blocks, kernel, stride of the first, expansion, channels out. From efficientnet_lite_builder.py.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, HEAD, CLASSES = 32, 1280, 1000
_PARTS = {"_conv_stem": "stem.conv", "_bn0": "stem.norm", "_conv_head": "head.conv", "_bn1": "head.norm"} | {
    "_fc": "classifier"
}
_BLOCK = {"_expand_conv": "expand.conv", "_bn0": "expand.norm", "_depthwise_conv": "depthwise.conv"} | {
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}


class ConvNorm(nn.Module):
    """A convolution padded as TensorFlow's "SAME" does it, more at the right and below, and a batch norm."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01)

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch outputs rows columns"]:
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        lacking = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in (x.shape[3], x.shape[2])]
        return self.norm(self.conv(pad(x, [edge for n in lacking for edge in (n // 2, n - n // 2)])))


class Block(nn.Module):
    """An inverted residual: widen, look around in each channel, narrow, and add the input where the shape allows."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        inner = inputs * expansion
        self.expand = ConvNorm(inputs, inner) if expansion > 1 else None
        self.depthwise = ConvNorm(inner, inner, kernel, stride, groups=inner)
        self.project = ConvNorm(inner, outputs)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch outputs rows columns"]:
        inner = relu6(self.expand(x)) if self.expand else x
        found = self.project(relu6(self.depthwise(inner)))
        return x + found if self.adds else found


class EfficientNetLite0(nn.Module):
    """Pixels to a grid of patch features, one for each 32 × 32 pixels; `classify` gives ImageNet's logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, STEM, 3, 2)
        blocks, width = [], STEM
        for count, kernel, stride, expansion, outputs in STAGES:
            for index in range(count):
                blocks.append(Block(width, outputs, kernel, 1 if index else stride, expansion))
                width = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = ConvNorm(width, HEAD)
        self.classifier = nn.Linear(HEAD, CLASSES)

    def forward(self, pixels: Float[Tensor, "images 3 height width"]) -> Float[Tensor, "images patches 1280"]:
        """What the classifier averages over, row by row: (N, 49, 1280) from images of 224 pixels."""
        return relu6(self.head(self.blocks(relu6(self.stem(pixels))))).flatten(2).mT

    def classify(self, pixels: Float[Tensor, "images 3 height width"]) -> Float[Tensor, "images 1000"]:
        """Logits of the ImageNet classes, in the order of 2012's challenge."""
        return self.classifier(self(pixels).mean(1))


def prepare(images: Sequence[Image.Image]) -> Float[Tensor, "images 3 224 224"]:
    """Pixels as the network was trained on: 224 wide and high, bicubic, (value - 127) / 128; a picture is squeezed."""
    found = [np.asarray(i.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32) for i in images]
    return (torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2) - 127) / 128


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state that `efficientnet-lite-pytorch` keeps, under the names of `EfficientNetLite0`."""
    found = {}
    for name, value in weights.items():
        block = re.match(r"_blocks\.(\d+)\.(\w+)(\..*)", name)
        part, _, rest = name.partition(".")
        if block:
            found[f"blocks.{block[1]}.{_BLOCK.get(block[2], block[2])}{block[3]}"] = value
        else:
            found[f"{_PARTS.get(part, part)}.{rest}"] = value
    return found
