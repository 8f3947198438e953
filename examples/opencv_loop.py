"""Push the frames of your own OpenCV loop through the runtime, one by one.

    python examples/opencv_loop.py [video file or camera index] [--bundle FOLDER] [--save annotated.mp4] [--show]

Without a source it opens the first camera. For each frame it prints what is seen, the belief of the oracle and the mix
of signatures in effect. The runtime keeps belief and weights from one call to the next, so frames must come in order.
"""

import argparse
import time

import cv2

from rws import Bundle, Runtime


def main() -> None:
    """Read, step, print and draw until the source ends, or until Ctrl-C or `q` in the window."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default="0", help="video file or camera index; default: 0")
    parser.add_argument("--bundle", help="bundle folder; default: the detector that ships with rws")
    parser.add_argument("--save", help="write the annotated frames to this .mp4 file")
    parser.add_argument("--show", action="store_true", help="show the annotated frames in a window")
    options = parser.parse_args()

    capture = cv2.VideoCapture(int(options.source) if options.source.isdecimal() else options.source)
    if not capture.isOpened():
        raise SystemExit(f"cannot open {options.source}; give a video file or a camera index")
    fps = capture.get(cv2.CAP_PROP_FPS) or 30.0
    writer = None
    with Runtime.from_bundle(Bundle.load(options.bundle)) as runtime:  # clean weights again at the end
        while True:
            captured_at = time.monotonic()  # the clock that the age of a result is measured with
            found, frame = capture.read()
            if not found:
                break
            result = runtime.step(frame, colour="bgr", captured_at=captured_at)  # OpenCV's colour order
            mix = ", ".join(f"{name} {alpha:.2f}" for name, alpha in result.mix.items()) or "clean weights"
            quality = f"{result.belief.type}, severity {result.belief.type_severity:.1f}"
            print(f"{result.index}  {result.describe(result.output)} · {quality} · {mix} · {result.age_ms:.0f} ms")
            if options.save or options.show:
                annotated = cv2.cvtColor(result.plot(), cv2.COLOR_RGB2BGR)  # plot() gives RGB
                if options.save and writer is None:
                    codec = cv2.VideoWriter.fourcc(*"mp4v")
                    writer = cv2.VideoWriter(options.save, codec, fps, annotated.shape[1::-1])
                if writer is not None:
                    writer.write(annotated)
                if options.show:
                    cv2.imshow("rws", annotated)
                    if cv2.waitKey(1) == ord("q"):
                        break
    capture.release()
    if writer is not None:
        writer.release()
        print(f"wrote {options.save}")


if __name__ == "__main__":
    main()
