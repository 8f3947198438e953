import torch
from torch.nn import functional as F

from rws.training.oracle.tile_network import COLOURS, FILTERS, RANKS, WIDTHS, Trunk


def random_stages() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return convolutions of few channels each, written as whole ones."""
    torch.manual_seed(0)
    before, stages = FILTERS, []
    for width, rank, size in zip(WIDTHS, RANKS, (4, 3, 3), strict=True):
        weight = torch.randn(width, rank) @ torch.randn(rank, before * size * size)
        stages.append((weight.view(width, before, size, size) / 20, torch.randn(width)))
        before = width
    return stages


def test_a_trunk_takes_whole_convolutions_as_near_as_its_ranks_allow():
    trunk, stages = Trunk(), random_stages()
    trunk.load((torch.randn(FILTERS, 3, 3, 3), torch.randn(FILTERS)), stages)
    for stage, (weight, bias), stride in zip(trunk.stages, stages, (2, 1, 1), strict=True):
        maps = torch.randn(2, weight.shape[1], 12, 12)
        torch.testing.assert_close(stage(maps), F.conv2d(maps, weight, bias, stride, 1), atol=1e-3, rtol=1e-3)


def test_statistics_tell_how_bright_a_tile_is_where_no_edge_is_left():
    trunk = Trunk()
    tiles = torch.stack([torch.full((3, 48, 48), level, dtype=torch.uint8) for level in (10, 120, 240)])
    dark, middle, bright = trunk(tiles)[:, :COLOURS]
    torch.testing.assert_close(middle - dark, (bright - middle) * 110 / 120)
    assert (bright - dark).abs().min() > 0
