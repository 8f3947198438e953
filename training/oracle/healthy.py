"""What cameras without a fault do to an image: exposure, colour, sharpness, a little noise, a codec.

Images are uint8 (H, W, 3), RGB, in and out. An oracle that never saw these calls them corruptions.
"""

import io
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from rws.training.data.photographs import Image

Floats = NDArray[Any]
FULL_SIGMA = 20.4  # grey levels: the noise of severity 1, about that of gaussian_noise


def healthy(image: Image, rng: np.random.Generator) -> Image:
    """Return the image as another camera would have taken it; nothing of it is a fault."""
    x = image.astype(np.float32) / 255
    if rng.random() < 0.7:
        x = _exposed(x, rng)
    sharpness = rng.random()
    if sharpness < 0.3:
        x = cv2.GaussianBlur(x, (0, 0), rng.uniform(0.25, 0.6))
    elif sharpness < 0.6:
        x = x + rng.uniform(0.2, 1.0) * (x - cv2.GaussianBlur(x, (0, 0), rng.uniform(0.6, 1.2)))
    elif sharpness < 0.7:
        x = cv2.bilateralFilter(np.clip(x, 0, 1), 5, rng.uniform(0.02, 0.06), 2)
    if rng.random() < 0.5:
        x = _noisy(x, rng.uniform(0, 1.6), rng, 0.6, 0.8)
    return _levels(x)


def _exposed(x: Floats, rng: np.random.Generator) -> Floats:
    """Change gamma, white balance, gain, and sometimes contrast and saturation."""
    x = x ** np.float32(np.exp(rng.uniform(np.log(0.7), np.log(1.4))))
    x = x * (rng.uniform(0.85, 1.15) * (1 + rng.uniform(-0.1, 0.1, 3))).astype(np.float32)
    if rng.random() < 0.5:
        x = x.mean() + (x - x.mean()) * np.float32(rng.uniform(0.75, 1.25))
    if rng.random() < 0.4:
        grey = x.mean(2, keepdims=True)
        x = grey + (x - grey) * np.float32(rng.uniform(0.5 if rng.random() < 0.7 else 0, 1.4))
    return x


def _noisy(x: Floats, sigma: float, rng: np.random.Generator, grained: float, most: float) -> Floats:
    """Add noise of `sigma` grey levels that grows with the light, often shared by neighbours and by the colours.

    `grained`: how often neighbours share it, as demosaicing leaves it; `most`: over how many pixels, σ.
    """
    z = rng.standard_normal(x.shape).astype(np.float32)
    if rng.random() < grained:
        z = cv2.GaussianBlur(z, (0, 0), rng.uniform(0.35, most))
    if rng.random() < 0.7:
        z = z + z.mean(2, keepdims=True) * 1.7
    light = np.sqrt(0.4 + 1.2 * np.clip(x, 0, 1))
    return np.asarray(x + z * (np.float32(sigma / 255 / z.std()) * light))


def sensor_noise(image: Image, rng: np.random.Generator) -> tuple[Image, float]:
    """Add the noise of a real sensor in little light, denoised or not; return also its severity, 0.35…1.3.

    What the 19 lack: it is coarser than a pixel, much the same in all colours, and weaker than their weakest.
    """
    sigma = float(np.exp(rng.uniform(np.log(2.5), np.log(33))))
    x = _noisy(image.astype(np.float32) / 255, sigma, rng, 0.85, 1.1)
    if rng.random() < 0.4:
        x = cv2.bilateralFilter(np.clip(x, 0, 1), 5, rng.uniform(0.02, 0.08), 1.5)
    return _levels(x), (sigma / FULL_SIGMA) ** 0.5


def underexposed(image: Image, mean: float, rng: np.random.Generator) -> Image:
    """Return the image with that mean, 0…255, or less: a scene at night or against the light, often free of noise."""
    x = (image.astype(np.float32) / 255) ** np.float32(np.exp(rng.uniform(0, np.log(3))))
    return _levels(_noisy(x * (mean / 255 / max(float(x.mean()), 1 / 255)), rng.uniform(0, 1.6), rng, 0.6, 0.8))


def stored(image: Image, rng: np.random.Generator, share: float) -> Image:
    """Return the image after JPEG of quality 50…97 or H.264 of an ordinary rate; with the odds `share` only."""
    chance = rng.random()
    if chance < 0.6 * share:
        return _jpeg(image, int(rng.uniform(60, 97) if rng.random() < 0.8 else rng.uniform(50, 60)), rng.random() < 0.3)
    return _h264(image, rng.uniform(17, 28)) if chance < share else image


def _jpeg(image: Image, quality: int, full_colour: bool) -> Image:
    sampling = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444 if full_colour else cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    encoded = cv2.imencode(".jpg", image[:, :, ::-1], options)[1]
    return np.ascontiguousarray(np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR))[:, :, ::-1], np.uint8)


def _h264(image: Image, crf: float) -> Image:
    """Return the third frame of a pan over the image, without the odd last row and column, which are repeated."""
    height, width = (length // 2 * 2 for length in image.shape[:2])
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        options = {"crf": f"{crf:.1f}", "preset": "ultrafast", "tune": "zerolatency", "threads": "1"}
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for shift in (2, 1, 0):
            shown = np.ascontiguousarray(np.roll(image, (shift, shift), (0, 1))[:height, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        container.mux(stream.encode())
    file.seek(0)
    with av.open(file) as container:
        *_, last = container.decode(video=0)
        found = last.to_ndarray(format="rgb24")
    return np.pad(found, ((0, image.shape[0] - height), (0, image.shape[1] - width), (0, 0)), mode="edge")


def _levels(x: Floats) -> Image:
    return np.asarray(np.clip(x, 0, 1) * 255 + 0.5, np.uint8)
