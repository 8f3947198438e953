"""What a person reads of a result: the class or the like, how good the image is, and what was patched."""

import textwrap

from rich.text import Text

from rws.edge.pipeline import Result, describe_mix
from rws.edge.tasks.classify import Classification
from rws.oracle.belief import CLEAN, Belief

INDENT = "    "
MOST_CLASSES = 3
SURE = 0.8  # below this probability, the second type is named, too


def describe_belief(belief: Belief) -> str:
    """Return the most probable type, e.g. `fog 92%, severity 3.2`."""
    certain = f"{belief.type} {belief.probability.max():.0%}"
    return certain if belief.type == CLEAN else f"{certain}, severity {belief.type_severity:.1f}"


def image_block(result: Result) -> Text:
    """Return a few lines about a single image."""
    belief = result.belief
    best, *others = _guesses(result)
    kind = "class" if result.task.name == "classify" else "answer"
    quality = describe_belief(belief) + ("" if belief.type == CLEAN else " of 5")
    second = int(belief.probability.argsort()[-2])
    unsure = f"  (or {belief.names[second]} {belief.probability[second]:.0%})"
    rows = {
        kind: best + (f"  (then {', '.join(others)})" if others else ""),
        "image": quality + (unsure if belief.probability.max() < SURE else ""),
        "patch": describe_mix(result.mix) if result.mix else f"none; the clean weights gave this {kind}",
        "unpatched": "" if result.unpatched is None else result.describe(result.unpatched),
        "uncorrupted": "" if result.on_original is None else result.describe(result.on_original),
    }
    shown = {title: text for title, text in rows.items() if text}
    width = max(map(len, shown)) + 2
    lines = [Text.assemble((f"  {title:<{width}}", "dim"), text) for title, text in shown.items()]
    return Text("\n").join([Text(result.name, style="bold"), *lines])


def image_line(result: Result, width: int | None) -> Text:
    """Return the same in a line, or in several if it has more than `width` columns."""
    answers = ", ".join(_guesses(result))
    patch = f"patch {describe_mix(result.mix)}" if result.mix else "no patch"
    facts = (answers, describe_belief(result.belief), patch)
    line = Text.assemble((result.name, "bold"), "  ", " · ".join(facts))
    if width is None or line.cell_len <= width:
        return line
    indented = textwrap.fill(" · ".join(facts), width, initial_indent=INDENT, subsequent_indent=INDENT)
    return Text.assemble((result.name, "bold"), "\n", indented)


def change_line(result: Result) -> Text:
    """Return a line about a frame at which the mix has changed."""
    facts = f"{describe_belief(result.belief)}  ->  {describe_mix(result.mix)}  {result.describe(result.output)}"
    camera = f"{result.camera}, " if result.camera else ""
    return Text(f"{camera}frame {result.index}  {facts}")


def _guesses(result: Result) -> list[str]:
    """Return the most probable classes, or what another task gives, in words."""
    if isinstance(result.output, Classification):
        return [f"{one.label} {one.confidence:.0%}" for one in result.output.top[:MOST_CLASSES]]
    return [result.describe(result.output)]
