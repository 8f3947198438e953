"""Make a bundle for your own ONNX classifier, from a few clean images without labels.

    python examples/adopt_model.py [model.onnx] [folder of images] [--out adopted] [--steps 50]

Without arguments it takes the model of the bundle that ships with rws, and the clear frames of the demo. With the few
steps of this example, signatures and oracle show how the parts fit; they win back little. A real build is one command:
`rws adopt model.onnx images/`. Needs the extra `train`: pip install 'rws-edge[train]'.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from rws import Bundle
from rws.benchmarks.demo.stream import load_stream
from rws.training.adopt.build import AdoptionBuild
from rws.training.adopt.model import adopt_model
from rws.training.adopt.recipe import AdoptRecipe
from rws.training.data.clean_images import CleanImages, load_clean_images
from rws.training.models.foreign import load_model

MODEL = Path(__file__).parents[1] / "edge/bundle/cifar10/model.onnx"


def demo_images() -> CleanImages:
    """Return the clear frames of the demo: CIFAR-10 test images, 32 x 32 pixels."""
    stream = load_stream()
    clear = [index for index, corruptions in enumerate(stream.corruptions) if not corruptions]
    return CleanImages(torch.from_numpy(stream.images[clear]).permute(0, 3, 1, 2).contiguous())


def main() -> None:
    """Convert the model, train signatures and oracle, and write the bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(MODEL))
    parser.add_argument("images", nargs="?", help="folder of clean images; default: the clear frames of the demo")
    parser.add_argument("--out", type=Path, default=Path("adopted"), help="bundle folder; default: adopted")
    parser.add_argument("--steps", type=int, default=50, help="training steps per signature; default: 50")
    options = parser.parse_args()

    # For a model that expects 0…255, or ImageNet's mean and std: ImportOptions(preprocessing=Preprocessing(…)).
    model = adopt_model(load_model(options.model))
    size = (model.input.height, model.input.width)
    images = load_clean_images(options.images, size) if options.images else demo_images()
    recipe = replace(AdoptRecipe(steps=options.steps).quick(), steps=options.steps)
    work = options.out.with_name(options.out.name + ".work")  # a build that was stopped continues from here
    build = AdoptionBuild(model, images, recipe, work, name="my model", progress=lambda record: print(record["job"]))
    build.bundle(options.out)
    print(f"wrote {options.out}: {', '.join(Bundle.load(options.out).signatures.names)}")


if __name__ == "__main__":
    main()
