"""`rws inspect`, `rws verify` and `rws bundle add|remove|switch`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rws.edge.cli.parameters import JsonOption, argument, optional
from rws.terminal import say, show

if TYPE_CHECKING:
    from rws.edge.bundle.bundle import Bundle

BundleArgument = Annotated[Path | None, argument(help="Bundle folder; default: the bundled one.")]
Folder = Annotated[Path, argument(help="Bundle folder.")]


def inspect(path: BundleArgument = None, report: JsonOption = None) -> None:
    """Show what a bundle carries, where it came from and what was measured; all of it is checked first.

    \b
    Examples:
        rws inspect                     # the bundled default
        rws inspect my_bundle --json my_bundle.json
    """
    from rws.edge.bundle.bundle import Bundle
    from rws.edge.common.files import check_target
    from rws.edge.common.provenance import write_json

    if report is not None:
        check_target(report)
    description = _describe(Bundle.load(path))
    _print(description)
    if report is not None:
        write_json(report, "inspect/1", description)


def verify(path: BundleArgument = None) -> None:
    """Check a bundle's format, sizes and hashes, and run all of its parts once.

    \b
    Examples:
        rws verify                      # the bundled default
        rws verify my_bundle && rws run 0 --bundle my_bundle
    """
    from rws.edge.bundle.bundle import Bundle
    from rws.edge.bundle.self_test import self_test

    loaded = Bundle.load(path)
    show(f"ok  {loaded.path}: format, sizes, hashes, names, shapes and values")
    for line in self_test(loaded):
        show(f"ok  {line}")


bundle = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)


@bundle.callback()
def _bundle() -> None:
    """Change a bundle, or put another in its place; the old one stays until the new one has been checked.

    \b
    Examples:
        rws bundle add my_bundle fog.safetensors
        rws bundle remove my_bundle fog
        rws bundle switch /var/lib/rws/bundle my_bundle
    """


@bundle.command()
def add(
    path: Folder,
    signatures: Annotated[Path, argument(help="Signature file, from `rws extract`.")],
    name: Annotated[list[str] | None, optional(help="Add only this one of the file; repeatable.")] = None,
    transfer: Annotated[
        bool, typer.Option("--transfer", help="Accept signatures made for other weights of the same names and shapes.")
    ] = False,
) -> None:
    """Append signatures to a bundle.

    \b
    Examples:
        rws bundle add my_bundle fog.safetensors
        rws bundle add my_bundle all.safetensors --name fog --name snow
        rws bundle add my_bundle other_model.safetensors --transfer
    """
    from rws.edge.bundle.edit import add_signatures
    from rws.edge.signatures.signature_set import SignatureSet

    _print_change(add_signatures(path, SignatureSet.load(signatures), name or None, transfer))


@bundle.command()
def remove(path: Folder, name: Annotated[str, argument(help="The signature's name.")]) -> None:
    """Take a signature out of a bundle.

    \b
    Examples:
        rws bundle remove my_bundle fog
    """
    from rws.edge.bundle.edit import remove_signature

    _print_change(remove_signature(path, name))


@bundle.command()
def switch(
    current: Annotated[Path, argument(help="Bundle folder that is in use, or a symbolic link to it.")],
    new: Annotated[Path, argument(help="Bundle folder that takes its place.")],
    other_classes: Annotated[
        bool, typer.Option("--other-classes", help="Accept a bundle with other classes, or in another order.")
    ] = False,
) -> None:
    """Put a copy of a bundle in the place of another, in one step, also while a device runs it.

    NEW is checked and run first, as `rws verify` does; on any failure CURRENT stays. `rws run --watch` takes the new
    one up by itself, other runs when they start again. If CURRENT is a symbolic link, the link is what changes: NEW is
    copied beside the folder that it points to, under NEW's own name (unless it is there already), and the link points
    to that; the old folder stays, to go back to.

    \b
    Examples:
        rws bundle switch /var/lib/rws/bundle my_bundle
        rws bundle switch /var/lib/rws/current v2                     # a link: v2 is copied beside what it points to
        rws bundle switch /var/lib/rws/current /var/lib/rws/v1        # and back
    """
    from rws.edge.bundle.swap import switch_bundle

    changed = switch_bundle(current, new, other_classes)
    where = f"{changed.path} -> {changed.path.readlink()}" if changed.path.is_symlink() else str(changed.path)
    count = len(changed.manifest.classes)
    say(f"{where} is now {changed.manifest.name}: {count} classes, {len(changed.signatures.names)} signatures")


def _print_change(changed: Bundle) -> None:
    measured = {changed.manifest.corruptions[index] for index in changed.table.signature if index >= 0}
    names = changed.signatures.names
    say(f"{changed.path} now has {len(names)} signatures: {', '.join(names)}")
    if unused := [name for name in names if name not in measured]:
        say(f"The policy does not choose {', '.join(unused)}: its gain table has not measured them.")
    say("Accuracies measured before no longer hold; measure again with `rws replay`.")


def _describe(bundle: Bundle) -> dict[str, Any]:
    manifest, signatures = bundle.manifest, bundle.signatures
    return {
        "path": str(bundle.path),
        "name": manifest.name,
        "classes": list(manifest.classes),
        "input": {"height": manifest.input.height, "width": manifest.input.width, "colour": manifest.input.colour},
        "patched_tensors": [{"name": tensor.name, "shape": list(tensor.shape)} for tensor in manifest.patched_tensors],
        "signatures": {"names": list(signatures.names), "bits": signatures.bits, "per": signatures.per},
        "oracle": {"corruptions": list(manifest.corruptions), "severity_levels": list(manifest.severity_levels)},
        "policy": {"actions": len(bundle.table.alpha), **manifest.policy},
        "filter": dict(manifest.filter),
        "bytes": {name: file.bytes for name, file in manifest.files.items()},
        "measured": dict(manifest.measured),
        "provenance": dict(manifest.provenance),
    }


def _print(description: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    signatures, size, oracle = description["signatures"], description["input"], description["oracle"]
    tensors, names = description["patched_tensors"], signatures["names"]
    levels = ", ".join(f"{level:g}" for level in oracle["severity_levels"])
    settings = {k: f"of {len(v)} states" if isinstance(v, list) else v for k, v in description["filter"].items()}
    rows = {
        "folder": description["path"],
        "input": f"{size['height']} x {size['width']} {size['colour']}",
        "classes": f"{len(description['classes'])}: {', '.join(description['classes'])}",
        "signatures": f"{len(names)}, {signatures['bits']} bit per {signatures['per']}: {', '.join(names)}",
        "patched tensors": "\n".join(f"{tensor['name']} {'x'.join(map(str, tensor['shape']))}" for tensor in tensors),
        "oracle": f"{len(oracle['corruptions'])} corruptions, severity {levels}",
        "policy": ", ".join(f"{key} {value}" for key, value in description["policy"].items()),
        "filter": ", ".join(f"{key} {value}" for key, value in settings.items()) or "default",
        "files": "\n".join(f"{name} {count:,} bytes" for name, count in description["bytes"].items()),
        "measured": _lines(description["measured"]) or "nothing since the signatures changed; see `rws replay`",
        "provenance": _lines(description["provenance"]) or "not recorded",
    }
    table = Table(title=description["name"], show_header=False, title_justify="left")
    for label, text in rows.items():
        table.add_row(label, Text(text))
    show(table)


def _lines(values: dict[str, Any]) -> str:
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
    return "\n".join(f"{key}: {text}" for key, text in texts.items())
