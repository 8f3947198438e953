"""Measure and draw the figures of the paper."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from rws.benchmarks.common.plots import GRID, INK, MUTED
from rws.benchmarks.paper.measure import ALL_LAYERS, Measure, Result, Variant, flat
from rws.training.corruptions import CORRUPTIONS
from rws.training.models.fit import accuracy, to_input
from rws.training.signatures.deltas import Deltas, composed, patched
from rws.training.signatures.tuned import shallow_part

COMPOSED = ("motion_blur", "gaussian_blur", "fog", "contrast")
SHOWN = ("gaussian_noise", "glass_blur", "contrast")
_ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def _by_layer(measure: Measure, deltas: Deltas) -> list[Tensor]:
    return [
        torch.cat([part.double().flatten() for name, part in deltas.items() if name.rpartition(".")[0] in members])
        for members in measure.groups
    ]


def _projected(measure: Measure) -> list[list[Tensor]]:
    return [_by_layer(measure, measure.deltas("projected", name, ALL_LAYERS)) for name in CORRUPTIONS]


def _cosines(vectors: Sequence[Tensor], others: Sequence[Tensor] | None = None) -> NDArray[np.float64]:
    def units(parts: Sequence[Tensor]) -> Tensor:
        return torch.stack([part / part.norm().clamp(min=1e-30) for part in parts])

    return (units(vectors) @ units(others or vectors).T).numpy()


def _in_a_row(count: int, size: tuple[float, float], **options: Any) -> tuple[Figure, Any]:
    figure, axes = plt.subplots(1, count, figsize=size, layout="constrained", squeeze=False, **options)
    return figure, axes[0]


def _rounded(values: Any, digits: int = 3) -> Any:
    return np.round(np.asarray(values, np.float64), digits).tolist()


def fig2(measure: Measure) -> Result:
    """Measure the norm of the signatures by layer, and the norm of the weights that they change."""
    std = dict(measure.std.named_parameters())
    clean = _by_layer(measure, {name: std[name].detach().cpu() for name in measure.tensors(ALL_LAYERS)})

    def norms(parts: list[Tensor]) -> Any:
        return _rounded([part.norm().item() for part in parts], 4)

    return {
        "norm": {name: norms(parts) for name, parts in zip(CORRUPTIONS, _projected(measure), strict=True)},
        "weights": norms(clean),
        "values": [part.numel() for part in clean],
    }


def draw_fig2(result: Mapping[str, Any]) -> Figure:
    """Draw norms, and norms relative to the weights', by layer."""
    figure, axes = _in_a_row(2, (7.4, 2.7))
    norm = np.array(list(result["norm"].values()))
    layers = np.arange(1, norm.shape[1] + 1)
    for axis, values, label in (
        (axes[0], norm / np.sqrt(result["values"]), "root mean square of R"),
        (axes[1], norm / np.array(result["weights"]), "|R| / |weights|"),
    ):
        axis.plot(layers, values.T, color=_COLOURS[5], lw=0.6)
        axis.plot(layers, values.mean(0), color=_COLOURS[0], lw=2, label="mean of 19")
        axis.axvspan(0.5, 5.5, color=GRID, alpha=0.5, lw=0)
        axis.set(xlabel="layer", ylabel=label, ylim=(0, None), xlim=(0.5, len(layers) + 0.5))
        axis.legend(frameon=False)
    return figure


def fig3(measure: Measure) -> Result:
    """Measure the cosine similarity between the signatures of two corruptions, layer by layer."""
    off = ~np.eye(len(CORRUPTIONS), dtype=bool)
    layers = [_cosines(parts)[off] for parts in zip(*_projected(measure), strict=True)]
    return {
        "mean": _rounded([pairs.mean() for pairs in layers]),
        "quartiles": _rounded([np.quantile(pairs, [0.25, 0.75]) for pairs in layers]),
        "extremes": _rounded([[pairs.min(), pairs.max()] for pairs in layers]),
    }


def draw_fig3(result: Mapping[str, Any]) -> Figure:
    """Draw the mean over pairs, half of them, and all of them."""
    figure, axis = plt.subplots(figsize=(4.4, 2.7), layout="constrained")
    layers = np.arange(1, len(result["mean"]) + 1)
    for key, shade, label in (("extremes", 0.15, "all pairs"), ("quartiles", 0.35, "half of the pairs")):
        low, high = np.array(result[key]).T
        axis.fill_between(layers, low, high, color=_COLOURS[0], alpha=shade, lw=0, label=label)
    axis.plot(layers, result["mean"], color=_COLOURS[0], lw=2, label="mean")
    axis.axhline(0, color=MUTED, lw=0.6)
    axis.set(xlabel="layer", ylabel="cosine similarity", ylim=(-1, 1))
    axis.legend(frameon=False, fontsize=8)
    return figure


def fig4(measure: Measure, images: int = 200) -> Result:
    """Measure the similarity of the 19 projection residuals, and each recipe residual's gain per corruption, points."""
    projected = [flat(measure.deltas("projected", name)) for name in CORRUPTIONS]
    deltas = {name: measure.deltas("residual", name) for name in CORRUPTIONS}
    alphas = measure.score(Variant("residual"))["alpha"]
    models = [patched(measure.std, composed([(deltas[name], alphas[name])])) for name in CORRUPTIONS]
    gains = []
    for corruption in CORRUPTIONS:
        test = measure.tests(corruption).first(images)
        before = accuracy(measure.std, test)
        gains.append([accuracy(model, test) - before for model in models])
    found = {"corruptions": list(CORRUPTIONS), "similarity": _rounded(_cosines(projected)), "gain": _rounded(gains, 1)}
    return found | {"gain_images": min(images, len(measure.clean))}


def _matrix(axis: Any, values: Any, rows: Sequence[str], columns: Sequence[str], **style: Any) -> Any:
    shown = axis.imshow(np.array(values), cmap="RdBu", **style)
    axis.set_xticks(range(len(columns)), [name.replace("_", " ") for name in columns], rotation=90, fontsize=6.5)
    axis.set_yticks(range(len(rows)), [name.replace("_", " ") for name in rows], fontsize=6.5)
    axis.tick_params(length=0)
    return shown


def draw_fig4(result: Mapping[str, Any]) -> Figure:
    """Draw both matrices."""
    figure, axes = _in_a_row(2, (8.6, 4))
    titles = {"similarity": "cosine similarity of signatures", "gain": "accuracy won, points"}
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        most = 1 if key == "similarity" else np.abs(result[key]).max()
        shown = _matrix(axis, result[key], result["corruptions"], result["corruptions"], vmin=-most, vmax=most)
        axis.set_title(title, fontsize=9)
        figure.colorbar(shown, ax=axis, shrink=0.7)
    axes[1].set(xlabel="signature", ylabel="test images")
    return figure


def fig5(measures: Sequence[Measure]) -> Result:
    """Measure, by layer, the cosine similarity of two data sets' signatures: same corruption, different ones."""
    found = []
    same = np.eye(len(CORRUPTIONS), dtype=bool)
    by_layer = [list(zip(*_projected(measure), strict=True)) for measure in measures]
    for (first, one), (second, other) in combinations(zip(measures, by_layer, strict=True), 2):
        layers = [_cosines(*parts) for parts in zip(one, other, strict=True)]
        pair = [measure.build.column.dataset for measure in (first, second)]
        scores = {"same": same, "cross": ~same}
        found.append({"pair": pair} | {key: _rounded([m[of].mean() for m in layers]) for key, of in scores.items()})
    return {"pairs": found}


def draw_fig5(result: Mapping[str, Any]) -> Figure:
    """Draw two lines per pair of data sets: similarity of the same and of different corruptions."""
    figure, axis = plt.subplots(figsize=(4.8, 3), layout="constrained")
    for colour, pair in zip(_COLOURS, result["pairs"], strict=False):
        layers = np.arange(1, len(pair["same"]) + 1)
        axis.plot(layers, pair["same"], color=colour, lw=1.8, marker="o", ms=3, label=" – ".join(pair["pair"]))
        axis.plot(layers, pair["cross"], color=colour, lw=1.2, ls=":")
    axis.plot([], [], color=INK, ls=":", label="different corruptions")
    axis.axhline(0, color=MUTED, lw=0.6)
    axis.set(xlabel="layer", ylabel="cosine similarity")
    axis.legend(frameon=False, fontsize=8)
    return figure


def fig6(measure: Measure, images: int = 300) -> Result:
    """Measure RA, percent, by number of patched layers, at strength 1; 0 layers: all tensors, the head included."""
    counts = [*range(1, len(measure.groups) + 1), ALL_LAYERS]
    values = {name: parameter.numel() for name, parameter in measure.std.named_parameters()}

    def reached(models: Iterable[nn.Module]) -> float:
        tests = (measure.tests(name).first(images) for name in CORRUPTIONS)
        return float(np.mean([accuracy(model, test) for model, test in zip(models, tests, strict=True)]))

    def with_layers(layers: int) -> Iterator[nn.Module]:
        return (patched(measure.std, measure.deltas("residual", name, layers)) for name in CORRUPTIONS)

    return {
        "layers": counts,
        "ra": _rounded([reached(with_layers(layers)) for layers in counts], 2),
        "share": _rounded([sum(values[name] for name in measure.tensors(n)) / sum(values.values()) for n in counts], 4),
        "no_patch": round(reached([measure.std] * len(CORRUPTIONS)), 2),
        "whole_robust_models": round(reached(map(measure.robust, CORRUPTIONS)), 2),
        "test_images": min(images, len(measure.clean)),
    }


def draw_fig6(result: Mapping[str, Any]) -> Figure:
    """Draw the curve between no patch and the whole robust models."""
    figure, axis = plt.subplots(figsize=(4.8, 2.8), layout="constrained")
    places = np.arange(len(result["layers"]) + 1)
    axis.plot(places, [result["no_patch"], *result["ra"]], color=_COLOURS[0], lw=1.8, marker="o", ms=3.5)
    axis.axhline(result["whole_robust_models"], color=_COLOURS[1], lw=1.2, ls="--", label="19 whole robust models")
    axis.axvline(5, color=GRID, lw=6, zorder=0)
    labels = ["0", *map(str, result["layers"][:-1]), "all"]
    axis.set_xticks(places, labels, fontsize=7)
    axis.set(xlabel="patched layers", ylabel="RA, %")
    axis.legend(frameon=False)
    return figure


def fig7(measure: Measure, images: int = 100) -> Result:
    """Measure accuracy (mean of 19) by strength and severity, of the paper's signatures and of the column's own."""
    found = {}
    for method in dict.fromkeys(("residual", measure.shipped)):
        table = np.zeros((5, len(_ALPHAS)))
        for corruption in CORRUPTIONS:
            deltas = measure.deltas(method, corruption)
            models = [patched(measure.std, composed([(deltas, alpha)])) for alpha in _ALPHAS]
            for severity in range(1, 6):
                test = measure.tests(corruption, severity).first(images)
                table[severity - 1] += [accuracy(model, test) for model in models]
        found[method] = _rounded(table / len(CORRUPTIONS), 2)
    return {"alphas": list(_ALPHAS), "ra": found, "test_images": min(images, len(measure.clean))}


def draw_fig7(result: Mapping[str, Any]) -> Figure:
    """Draw one line per severity."""
    figure, axes = _in_a_row(len(result["ra"]), (7.4, 2.9), sharey=True)
    shades = plt.get_cmap("viridis")(np.linspace(0.9, 0.05, 5))
    for axis, (method, table) in zip(axes, result["ra"].items(), strict=True):
        for severity, (shade, line) in enumerate(zip(shades, table, strict=True), start=1):
            axis.plot(result["alphas"], line, color=shade, lw=1.6, label=f"severity {severity}")
            best = int(np.argmax(line))
            axis.plot(result["alphas"][best], line[best], "o", color=shade, ms=5)
        axis.set(xlabel="strength α", title=method)
    axes[0].set_ylabel("accuracy, mean of 19, %")
    axes[0].legend(frameon=False, fontsize=7.5)
    return figure


def fig8(measure: Measure, images: int = 300) -> Result:
    """Measure four signatures, alone and in pairs (`Measure.both`), on one corruption and on two at once, percent."""
    test, validation = measure.clean.first(images), measure.validation.first(images)
    pairs = list(combinations(COMPOSED, 2))
    found = {}
    for method in dict.fromkeys(("residual", measure.shipped)):
        alphas = measure.score(Variant(method))["alpha"]
        mixes: dict[str, Deltas] = {"none": {}}
        mixes |= {name: composed([(measure.deltas(method, name), alphas[name])]) for name in COMPOSED}
        for pair in pairs:
            mixes[" + ".join(pair)] = measure.both(method, pair, measure.doubled(validation, pair, "validation"))
        models = [patched(measure.std, mix) for mix in mixes.values()]
        tests = {name: measure.tests(name).first(images) for name in COMPOSED}
        tests |= {" + ".join(pair): measure.doubled(test, pair) for pair in pairs}
        found[method] = {
            name: _rounded([accuracy(model, test_set) for model in models], 1) for name, test_set in tests.items()
        }
    return {"mixes": list(mixes), "ra": found, "test_images": len(test)}


def draw_fig8(result: Mapping[str, Any]) -> Figure:
    """Draw the gain of each mix over no patch, in points."""
    figure, axes = _in_a_row(len(result["ra"]), (9.4, 4.4), sharey=True)
    for axis, (method, table) in zip(axes, result["ra"].items(), strict=True):
        scores = np.array(list(table.values()))
        gain = scores[:, 1:] - scores[:, :1]
        _matrix(axis, gain, list(table), result["mixes"][1:], vmin=-60, vmax=60)
        for (row, column), value in np.ndenumerate(gain):
            axis.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=6, color=INK)
        axis.set(title=f"{method}: gain, points", xlabel="signatures")
    axes[0].set_ylabel("test images")
    return figure


def fig9(measure: Measure) -> Result:
    """Measure how far the first deep layer's input is from that of the clean image, standard and patched.

    `distance` is |f(x_c) − f(x)| / |f(x)|, mean of 200 images; `maps` are uint8, of four channels of one image: the
    clean one in the standard model, the corrupted one in it, and in the patched one.
    """
    names = measure.tensors(5)
    alphas = measure.score(Variant("residual"))["alpha"]

    def seen(model: nn.Module, pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            found: Tensor = shallow_part(model, names)(to_input(pixels))
        return found.float().cpu()

    clean = measure.clean.first(200)
    aim = seen(measure.std, clean.pixels)
    # The strongest channels, of an image with a simple subject.
    channels = aim.std((0, 2, 3)).topk(4).indices.tolist()
    distance, maps, pictures = {}, {}, {}
    for corruption in CORRUPTIONS:
        pixels = measure.tests(corruption).pixels[: len(clean)]
        model = patched(measure.std, composed([(measure.deltas("residual", corruption), alphas[corruption])]))
        before, after = seen(measure.std, pixels), seen(model, pixels)
        size = aim.flatten(1).norm(dim=1)
        far = [((found - aim).flatten(1).norm(dim=1) / size).mean().item() for found in (before, after)]
        distance[corruption] = _rounded(far)
        if corruption in SHOWN:
            top = aim[0, channels].amax((1, 2)).clamp(min=1e-6).view(1, -1, 1, 1)
            shown = torch.stack([part[0, channels] for part in (aim, before, after)]) / top
            maps[corruption] = (shown.clamp(0, 1) * 255).to(torch.uint8).tolist()
            pictures[corruption] = pixels[0].permute(1, 2, 0).cpu().tolist()
    pictures["clean"] = clean.pixels[0].permute(1, 2, 0).cpu().tolist()
    return {"distance": distance, "maps": maps, "pictures": pictures, "test_images": len(clean)}


def draw_fig9(result: Mapping[str, Any]) -> Figure:
    """Draw the image and four maps: clean, then corrupted in the standard and in the patched model."""
    rows = [("clean, standard", "clean", next(iter(result["maps"])), 0)]
    for name in result["maps"]:
        label = name.replace("_", " ")
        rows += [(f"{label},\nstandard", name, name, 1), (f"{label},\npatched", name, name, 2)]
    figure, axes = plt.subplots(len(rows), 5, figsize=(4.6, 0.92 * len(rows)), layout="constrained")
    for line, (label, picture, name, which) in zip(axes, rows, strict=True):
        line[0].imshow(np.array(result["pictures"][picture], np.uint8))
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=7)
        for axis, feature in zip(line[1:], result["maps"][name][which], strict=True):
            axis.imshow(np.array(feature), cmap="viridis", vmin=0, vmax=255)
        for axis in line:
            axis.set(xticks=[], yticks=[])
    return figure


def draw_smaller(result: Mapping[str, Any]) -> Figure:
    """Draw RA against bytes of all 19 signatures, as a share of the clean model."""
    figure, axis = plt.subplots(figsize=(4.8, 3), layout="constrained")
    curves: dict[str, list[Any]] = {"no basis, 32 to 4 bits": []}
    for row in sorted(result["rows"], key=lambda row: -row["bits"]):
        if row["what"] == "one scale per channel":
            curves["no basis, 32 to 4 bits"].append(row)
        elif row["what"] == "shared basis":
            curves.setdefault(f"shared basis, {row['bits']} bits", []).append(row)
    for colour, (label, rows) in zip(_COLOURS, curves.items(), strict=False):
        share = [row["bytes"] / result["model_bytes"] for row in rows]
        axis.plot(share, [row["ra"] for row in rows], color=colour, marker="o", ms=3.5, lw=1.5, label=label)
    axis.set(xlabel="bytes of 19 signatures / bytes of the model", ylabel="RA, %", xscale="log")
    axis.legend(frameon=False, fontsize=8)
    return figure
