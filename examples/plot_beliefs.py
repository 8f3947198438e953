"""Plot what the oracle believes about each image of a folder.

    python examples/plot_beliefs.py [folder, glob or list of images] [--bundle FOLDER] [--out beliefs.png]

Without a source it takes the photographs in examples/photos. Each row of the PNG shows an image, the probability of
each corruption type that reaches 2 %, and what the patched model sees in this image alone.
Needs matplotlib: pip install 'rws-edge[demo]'.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from rws import Bundle, Runtime, open_source


def main() -> None:
    """Classify each image alone, then draw one row per image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default=str(Path(__file__).parent / "photos"))
    parser.add_argument("--bundle", help="bundle folder; default: the detector that ships with rws")
    parser.add_argument("--out", default="beliefs.png", help="PNG to write; default: beliefs.png")
    options = parser.parse_args()

    with Runtime.from_bundle(Bundle.load(options.bundle)) as runtime, open_source(options.source) as source:
        rows = [(frame, runtime.classify(frame.image, "rgb", frame.name)) for frame in source]

    names = rows[0][1].belief.names  # clean, then the corruptions
    colours = dict(zip(names, ["#d5d9e0", *plt.get_cmap("turbo").resampled(len(names) - 1).colors], strict=True))
    figure, axes = plt.subplots(
        len(rows), 2, figsize=(10, 1.0 * len(rows) + 0.6), width_ratios=[1, 8], squeeze=False, layout="constrained"
    )
    for (picture, bars), (frame, result) in zip(axes, rows, strict=True):
        picture.imshow(frame.image)
        picture.axis("off")
        pairs = zip(names, result.belief.probability.tolist(), strict=True)
        types = sorted(((name, p) for name, p in pairs if p >= 0.02), key=lambda pair: -pair[1])
        start = 0.0
        for name, probability in types:
            bars.barh(0, probability, left=start, color=colours[name], edgecolor="white")
            start += probability
        belief = ", ".join(f"{name.replace('_', ' ')} {probability:.0%}" for name, probability in types)
        bars.set_title(f"{belief}; severity {result.belief.type_severity:.1f}", loc="left", fontsize=9)
        bars.set_title(f"{Path(frame.name).name} → {result.describe(result.output)}", loc="right", fontsize=9)
        bars.set(xlim=(0, 1), yticks=[], xticks=[])
    axes[-1, 1].set(xlabel="probability of each corruption type", xticks=[0, 0.25, 0.5, 0.75, 1])
    figure.savefig(options.out, dpi=120)
    print(f"wrote {options.out}: {len(rows)} images")


if __name__ == "__main__":
    main()
