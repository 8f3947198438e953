"""Write the README's tables out of `benchmarks/results/`, so that no number in it is typed by hand.

    python -m benchmarks.readme            # rewrite the tables
    python -m benchmarks.readme --check    # exit with 1 if one is out of date

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
WAYS = {
    "std": "never patched",
    "trained": "**trained oracle**",
    "perfect": "told type and severity (perfect oracle)",
    "best": "told, best action of the gain table",
    "always": "all signatures averaged, always on",
}


def _read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _made_by(*results: dict[str, Any]) -> str:
    commands = " and ".join(f"`{result['command']}`" for result in results)
    return f"Made by {commands} ({results[0]['machine']['processor']}, seed {results[0]['seed']})."


def _bundle_sizes() -> str:
    files = json.loads((ROOT / "edge/default_bundle/bundle.json").read_text())["files"]
    size = {name: entry["bytes"] / 1e6 for name, entry in files.items()}
    return (
        f"The bundle is {sum(size.values()):.2f} MB: model {size['model.onnx']:.2f}, 19 signatures "
        f"{size['signatures.safetensors']:.2f}, oracle {size['oracle.onnx']:.2f}, policy "
        f"{size['policy.safetensors']:.2f}."
    )


def replay_table() -> str:
    """TA and RA of every way, at severity 5 and over all severities."""
    worst, every = _read("replay_severity5"), _read("replay_all")
    lines = [_row("", "TA, clean", "RA, severity 5", "RA, severities 1–5"), _row("---", "---:", "---:", "---:")]
    for way, label in WAYS.items():
        lines.append(_row(label, *(f"{value[way]:.2f}" for value in (worst["ta"], worst["ra"], every["ra"]))))
    scores = every["oracle"]
    lines += [
        "",
        f"CIFAR-10 test images, 19 corruptions, each frame on its own, no temporal filter, in %: {worst['images']:,} "
        f"images clean and at severity 5, {every['images']:,} at each of the severities 1–5. The oracle on one frame, "
        f"all severities: type {scores['type_accuracy']:.1f} %, clean recall {scores['clean_recall']:.1f} %, mean "
        f"severity error {scores['severity_mae']:.2f}; at severity 5: type {worst['oracle']['type_accuracy']:.1f} %. "
        f"{_made_by(worst, every)}",
        "",
        f"{_bundle_sizes()} The paper's figure for CIFAR-10 with a VGG-16 of 58.8 MB, 8-bit signatures and a perfect "
        "oracle is TA 92.59, RA 82.99 (severity 5).",
    ]
    return "\n".join(lines)


def corruption_table() -> str:
    """Severity 5, corruption by corruption."""
    result = _read("replay_severity5")
    ways = ("std", "trained", "perfect", "always")
    lines = [
        _row("severity 5", *(WAYS[way].strip("*").split(" (")[0] for way in ways)),
        _row("---", *["---:"] * len(ways)),
    ]
    for name, scores in result["per_corruption"].items():
        lines.append(_row(name.replace("_", " "), *(f"{scores[way]:.1f}" for way in ways)))
    return "\n".join(lines)


def ways_table() -> str:
    """Tuned signatures beside the paper's residual."""
    result = _read("ways")
    columns = {
        "ra_validation": "RA on validation images",
        "ra": "RA, float32",
        "ra_8bit_channel": "8 bit, per channel",
        "ra_8bit_tensor": "8 bit, per tensor",
        "ra_4bit_channel": "4 bit, per channel",
        "ra_two_corruptions": "two corruptions at once, both signatures",
        "ra_pair_halves": "one corruption, two signatures at ½",
    }
    lines = [_row("", *columns.values(), "training, 19 signatures"), _row("---", *["---:"] * (len(columns) + 1))]
    std = result["std"]
    lines.append(_row("never patched", "", f"{std['ra']:.2f}", "", "", "", f"{std['ra_two_corruptions']:.2f}", "", ""))
    for way in ("tuned", "residual"):
        row = result[way]
        lines.append(_row(way, *(f"{row[key]:.2f}" for key in columns), f"{row['train_seconds'] / 60:.0f} min"))
    lines += [
        "",
        f"Severity 5 (two at once: {result['pair_severity']:.0f} each, {len(result['pairs'])} pairs), "
        f"{result['test_images']:,} test images; the 19 whole robust models behind `residual` reach "
        f"{result['residual']['ra_whole_robust_models']:.2f}. α from validation images. {_made_by(result)}",
    ]
    return "\n".join(lines)


TABLES = {"replay": replay_table, "corruptions": corruption_table, "ways": ways_table}


def render(text: str) -> str:
    """The text with every table made anew."""
    for name, table in TABLES.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"README.md has no place for the table {name!r}")
        content = table()
        text = pattern.sub(lambda match, content=content: f"{match.group(1)}{content}\n{match.group(2)}", text)
    return text


def main(check: Annotated[bool, typer.Option(help="Only compare.")] = False) -> None:
    """Rewrite or check the README's tables."""
    path = ROOT / "README.md"
    old = path.read_text()
    new = render(old)
    if check and new != old:
        raise SystemExit("README.md is out of date: run python -m benchmarks.readme")
    path.write_text(new)


if __name__ == "__main__":
    typer.run(main)
