"""Replay a small test set under corruption: accuracy with no patch, the trained oracle and the perfect oracle.

    python examples/replay_test_set.py [folder of class folders] [--bundle FOLDER] [--severity 5] [--limit 50]

Without a folder it takes the clear frames of the demo, which are CIFAR-10 test images. The images are corrupted here,
each of the chosen corruptions on all of them. `rws replay` measures all 19 corruptions and reads CIFAR-10-C and
ImageNet-C as well. Needs the extra `bench`: pip install 'rws-edge[bench]'.
"""

import argparse

import torch

from rws import Bundle
from rws.benchmarks.demo.stream import load_stream
from rws.benchmarks.replay.replay import Replayer
from rws.training.data.images import Images, fitted, load_images
from rws.training.evaluation.sets import corrupted_sets

ARMS = {"std": "no patch", "trained": "trained oracle", "perfect": "perfect oracle"}


def demo_images() -> Images:
    """Return the clear frames of the demo with their labels."""
    stream = load_stream()
    clear = [index for index, corruptions in enumerate(stream.corruptions) if not corruptions]
    pixels = torch.from_numpy(stream.images[clear]).permute(0, 3, 1, 2).contiguous()
    return Images(pixels, torch.from_numpy(stream.labels[clear]), stream.classes)


def main() -> None:
    """Corrupt the images, run each under the three arms, and print the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", help="images as <class>/<image>; default: the clear frames of the demo")
    parser.add_argument("--bundle", default="cifar10", help="bundle of a classifier; default: cifar10, which ships")
    parser.add_argument("--severity", type=int, default=5, choices=range(1, 6))
    parser.add_argument("--limit", type=int, default=50, help="at most this many images; default: 50")
    parser.add_argument("--corruptions", nargs="+", default=["gaussian_noise", "defocus_blur", "fog", "contrast"])
    options = parser.parse_args()

    bundle = Bundle.load(options.bundle)
    classes, size = bundle.manifest.classes, bundle.manifest.input.height
    images = load_images(options.folder, size=size) if options.folder else demo_images()
    images = fitted(images, classes, size, options.folder or "demo")  # the bundle's order of classes
    replayer = Replayer(bundle)
    print(f"{'accuracy in %':18s}" + "".join(f"{arm:>16s}" for arm in ARMS.values()))
    for test in corrupted_sets(images, [options.severity], options.limit, seed=0, names=options.corruptions):
        correct = replayer.run(test).correct
        print(f"{test.corruption:18s}" + "".join(f"{100 * correct[arm].mean():16.1f}" for arm in ARMS))


if __name__ == "__main__":
    main()
