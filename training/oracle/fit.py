"""Train the oracle on clean images, which are corrupted on the way."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from rws.training.corruptions import CORRUPTIONS, corrupt_mixed, seeds_for
from rws.training.data.images import Images
from rws.training.jobs.seeds import derive_seed
from rws.training.jobs.store import STATE, Store
from rws.training.models.fit import autocast, channels_last, crop_and_flip, full_batches, to_input
from rws.training.models.loop import Plan, Report, identity_of, train
from rws.training.oracle.network import OracleNetwork
from rws.training.oracle.sampling import LEVELS, OracleRecipe, draw

ORACLE_VERSION = 1  # raise it when the same recipe and images give another network


def oracle_batches(
    data: Images, recipe: OracleRecipe, epoch: int, seed: int, corruptions: Sequence[str] = CORRUPTIONS
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one epoch, each image once: float32 images (N, 3, H, W) and target distributions (N, 1 + C·S)."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "oracle training", draw=epoch))
    order = torch.randperm(len(data), generator=generator)
    known = torch.tensor([*(CORRUPTIONS.index(name) for name in corruptions), -1])
    for index in full_batches(order.to(data.pixels.device), recipe.batch_size):
        pixels = crop_and_flip(data.pixels[index], recipe.crop, generator)
        drawn = draw(len(index), recipe, corruptions, generator)
        layers = ((drawn.types, drawn.severities), (drawn.second_types, drawn.second_severities))
        for layer, (types, severities) in enumerate(layers):
            seeds = seeds_for(derive_seed(seed, f"oracle training, layer {layer}", draw=epoch), index)
            pixels = corrupt_mixed(pixels, known[types].to(pixels.device), severities.to(pixels.device), seeds)
        yield to_input(pixels), drawn.target.to(pixels.device)


def fit_oracle(
    data: Images,
    recipe: OracleRecipe,
    *,
    corruptions: Sequence[str] = CORRUPTIONS,
    seed: int = 0,
    checkpoint: Path | None = None,
    report: Report | None = None,
) -> OracleNetwork:
    """Train the oracle on clean images without labels. Its states are clean and `corruptions`, in this order."""
    torch.manual_seed(seed)
    device = data.pixels.device
    network = channels_last(_network(recipe, corruptions), device)

    def loss_of(batch: tuple[Tensor, Tensor]) -> Tensor:
        with autocast(device, recipe.precision):
            logits = network(batch[0])
        return F.cross_entropy(logits.float(), batch[1])

    identity = identity_of(recipe, tuple(corruptions), seed, len(data))
    plan = Plan.over(len(data), recipe.epochs, recipe.batch_size, recipe.warmup, identity)
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    epochs = partial(oracle_batches, data, recipe, seed=seed, corruptions=corruptions)
    train(network, optimiser, epochs, loss_of, plan, checkpoint=checkpoint, report=report)
    return network


def _network(recipe: OracleRecipe, corruptions: Sequence[str]) -> OracleNetwork:
    return OracleNetwork(recipe.filters, recipe.widths, 1 + len(corruptions) * len(LEVELS))


def stored_oracle(
    store: Store,
    name: str,
    data: Images,
    recipe: OracleRecipe,
    *,
    corruptions: Sequence[str] = CORRUPTIONS,
    seed: int = 0,
    report: Report | None = None,
) -> OracleNetwork:
    """Return the network of `fit_oracle` on the CPU, trained once and kept in a file of the store, `.pt`."""
    entry = store.entry(name, [ORACLE_VERSION, data.digest(), recipe, tuple(corruptions), seed], STATE)
    fitted = partial(fit_oracle, data, recipe, corruptions=corruptions, seed=seed, report=report)
    state = entry.get(lambda: fitted(checkpoint=entry.checkpoint).state_dict())
    network = channels_last(_network(recipe, corruptions))
    network.load_state_dict(state)
    return network.eval()
