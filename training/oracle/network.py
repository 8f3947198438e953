"""The oracle's network: one frame to logits over clean and (corruption, severity level)."""

from itertools import pairwise, product

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SHARPNESS = 30.0  # softsign is half-way at a residual of 1/30, about eight grey levels


class OracleNetwork(nn.Module):
    """float32 (N, 3, H, W), RGB, 0…1, to logits over 1 + C·S joint states.

    Most corruptions show in what a high-pass filter leaves, and small residuals tell more than large ones: the first
    convolution starts as such filters and goes through softsign. The head sees the mean and the log variance of the
    channels of each further convolution. It scores each (corruption, level) pair: each has its capacity for severity.
    """

    def __init__(self, filters: int = 16, widths: tuple[int, ...] = (32, 64, 96), states: int = 1 + 19 * 5) -> None:
        super().__init__()
        self.front = nn.Conv2d(3, filters, 3, padding=1)
        with torch.no_grad():
            self.front.weight.copy_(_high_pass(filters))
        nn.init.zeros_(self.front.get_parameter("bias"))
        self.stages = nn.ModuleList()
        for channels, width in pairwise((filters, *widths)):
            # The first one halves the resolution itself: the most expensive place to do it later.
            kernel, stride = (3, 1) if self.stages else (4, 2)
            convolution = nn.Conv2d(channels, width, kernel, stride, padding=1, bias=False)
            self.stages.append(nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU()))
        self.scale = nn.BatchNorm1d(2 * sum(widths))
        self.head = nn.Linear(2 * sum(widths), states)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch."""
        maps = F.softsign(F.conv2d(x - 0.5, SHARPNESS * self.front.weight, self.front.bias, padding=1))
        pooled = []
        for index, stage in enumerate(self.stages):
            maps = stage(F.max_pool2d(maps, 2) if index else maps)
            values = maps.float()
            mean = F.adaptive_avg_pool2d(values, 1).flatten(1)
            square = F.adaptive_avg_pool2d(values * values, 1).flatten(1)
            pooled += [mean, ((square - mean * mean).clamp(min=0) + 1e-4).log()]
        logits: Tensor = self.head(self.scale(torch.cat(pooled, 1)))
        return logits


def _high_pass(filters: int) -> Tensor:
    """First weights (filters, 3, 3, 3): Laplacian and differences of each colour, the colours, then random ones."""
    weights = 0.3 * torch.randn(filters, 3, 3, 3)
    weights -= weights.mean((1, 2, 3), keepdim=True)
    laplacian = [[0, -0.25, 0], [-0.25, 1, -0.25], [0, -0.25, 0]]
    across, down = [[0, 0, 0], [-1, 1, 0], [0, 0, 0]], [[0, -1, 0], [0, 1, 0], [0, 0, 0]]
    colours = [[0, 0, 0], [0, 0.5, 0], [0, 0, 0]]
    kernels = torch.tensor([laplacian, across, down, colours])
    for weight, (kernel, colour) in zip(weights, product(kernels, range(3)), strict=False):
        weight.zero_()[colour] = kernel
    return weights


@torch.no_grad()
def oracle_logits(network: OracleNetwork, x: Tensor, batch_size: int = 500) -> Tensor:
    """Return float32 logits (N, 1 + C·S) of uint8 images (N, 3, H, W)."""
    return torch.cat([network(part.float().div(255)) for part in torch.split(x, batch_size)])
