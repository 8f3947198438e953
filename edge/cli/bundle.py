"""`rws bundle list|inspect|verify|add|remove|upgrade|switch|keygen|sign`; `rws inspect` and `rws verify`, too."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rws.edge.cli.parameters import JsonOption, KeyOption, argument, optional
from rws.edge.common.files import check_target
from rws.errors import BundleError, RwsError, UsageError
from rws.terminal import is_verbose, say, show
from rws.text import printable, shown_lines

if TYPE_CHECKING:
    from rws.edge.bundle.bundle import Bundle

log = logging.getLogger(__name__)

BundleArgument = Annotated[
    Path | None, argument(metavar="BUNDLE", help="Bundle folder, or detector or cifar10; default: detector.")
]
Folder = Annotated[Path, argument(metavar="BUNDLE", help="Bundle folder.")]


def inspect(path: BundleArgument = None, key: KeyOption = None, report: JsonOption = None) -> None:
    """Show what a bundle contains, where it came from and what was measured.

    \b
    Examples:
        rws inspect                     # the detector that ships
        rws inspect my_bundle --json my_bundle.json
    """
    from rws.edge.bundle.bundle import Bundle
    from rws.edge.bundle.keys import trusted_keys
    from rws.edge.common.provenance import write_json

    description = _describe(Bundle.load(path, trusted_keys(key)))
    _print(description)
    if report is not None:
        write_json(report, "inspect/1", description)


def verify(path: BundleArgument = None, key: KeyOption = None) -> None:
    """Check a bundle's format, sizes and hashes, and run its parts once.

    All but the hashes is done in a child process with few rights, and limits of time and memory. It runs on the CPU.

    \b
    Examples:
        rws verify                      # the detector that ships
        rws verify my_bundle && rws run 0 --bundle my_bundle
        rws verify my_bundle --key maker.pub
    """
    from rws.edge.bundle.contents import BundleFiles
    from rws.edge.bundle.examine import examine
    from rws.edge.bundle.keys import trusted_keys

    files = BundleFiles.read(path, trusted_keys(key))
    if files.signed_by:
        show(f"ok  {files.path}: signed with the key {files.signed_by}")
    verdict = examine(files)
    show(f"ok  {files.path}: format, sizes, hashes, names, shapes and values")
    for line in verdict.tested:
        show(f"ok  {line}")


bundle = typer.Typer(add_completion=False, no_args_is_help=True)
bundle.command()(inspect)
bundle.command()(verify)


@bundle.callback()
def _bundle() -> None:
    """List, inspect, check, change, sign and switch bundles.

    A change is checked before it takes the place of what was there.

    \b
    Examples:
        rws bundle list                      # the bundles that ship
        rws bundle add my_bundle fog.safetensors
        rws bundle remove my_bundle fog
        rws bundle sign my_bundle --key maker.key
        rws bundle switch /var/lib/rws/bundle my_bundle
    """


@bundle.command("list")
def list_bundles(
    folders: Annotated[
        list[Path] | None, argument(metavar="FOLDER", help="Bundle folders, or folders of bundle folders.")
    ] = None,
    report: JsonOption = None,
) -> None:
    """List the bundles that ship, `imagenet` if it was made here, and those in the folders given.

    \b
    Examples:
        rws bundle list
        rws bundle list my_bundle /var/lib/rws --json -
    """
    from rich.table import Table
    from rich.text import Text

    from rws.edge.bundle.contents import DEFAULT_BUNDLE
    from rws.edge.common.provenance import write_json

    table = Table("name", "classes", "input", "signatures", "MB", "path")
    rows = []
    for found in _bundles(folders or []):
        row = _describe(found)
        row = {key: row[key] for key in ("name", "classes", "input", "signatures", "bytes", "path")}
        row |= {"classes": len(row["classes"]), "signatures": len(found.signatures.names)}
        row["bytes"] = sum(row["bytes"].values())
        rows.append(row)
        name = f"{row['name']} (default)" if found.path == DEFAULT_BUNDLE else row["name"]
        values = name, row["classes"], _input(row), row["signatures"], f"{row['bytes'] / 1e6:.1f}", row["path"]
        table.add_row(*(Text(printable(str(value)), overflow="fold") for value in values))
    show(table)
    if report is not None:
        write_json(report, "bundle-list/1", {"bundles": rows})


@bundle.command()
def add(
    path: Folder,
    signatures: Annotated[Path, argument(metavar="FILE", help="Signature file, from `rws extract`.")],
    name: Annotated[
        list[str] | None, optional(help="Add only this signature of the file; repeatable; default: all.")
    ] = None,
    transfer: Annotated[
        bool, typer.Option("--transfer", help="Accept signatures made for other weights of the same names and shapes.")
    ] = False,
) -> None:
    """Add signatures to a bundle.

    \b
    Examples:
        rws bundle add my_bundle fog.safetensors
        rws bundle add my_bundle all.safetensors --name fog --name snow
        rws bundle add my_bundle other_model.safetensors --transfer
    """
    from rws.edge.bundle.edit import add_signatures
    from rws.edge.signatures.signature_set import SignatureSet

    signed = _is_signed(path)
    _print_change(add_signatures(path, SignatureSet.load(signatures), name or None, transfer), signed)


@bundle.command()
def remove(path: Folder, name: Annotated[str, argument(metavar="NAME", help="The signature's name.")]) -> None:
    """Remove a signature from a bundle.

    \b
    Examples:
        rws bundle remove my_bundle fog
    """
    from rws.edge.bundle.edit import remove_signature

    signed = _is_signed(path)
    _print_change(remove_signature(path, name), signed)


@bundle.command()
def upgrade(path: Folder) -> None:
    """Write a bundle of an earlier version in the present version of its format; both run the same.

    A change by `rws bundle add` or `remove` upgrades, too.

    \b
    Examples:
        rws bundle upgrade my_bundle
    """
    from rws.edge.bundle.edit import upgrade_bundle
    from rws.edge.bundle.manifest import VERSION

    signed = _is_signed(path)
    changed = upgrade_bundle(path)
    say(f"{path} is {'now' if changed else 'already'} in version {VERSION} of the format")
    _say_unsigned(signed and changed)


@bundle.command()
def switch(
    current: Annotated[
        Path, argument(metavar="CURRENT", help="Bundle folder that is in use, or a symbolic link to it.")
    ],
    new: Annotated[Path, argument(metavar="NEW", help="Bundle folder that takes its place.")],
    other_classes: Annotated[
        bool, typer.Option("--other-classes", help="Accept a bundle with other classes, or in another order.")
    ] = False,
    key: KeyOption = None,
) -> None:
    """Replace a bundle by a copy of another in one step, also during a run.

    NEW is checked and run first, as `rws verify` does and never as root; if that fails, CURRENT stays. A run with
    `--watch` loads the new bundle at once, others when they restart. If CURRENT is a symbolic link, only the link
    changes: NEW is copied next to the folder that the link points to, under its own name (unless that exists already),
    and the link then points to the copy. The old folder stays, so that you can switch back.

    \b
    Examples:
        rws bundle switch /var/lib/rws/bundle my_bundle
        rws bundle switch /var/lib/rws/current v2                     # a link: v2 is copied next to its target
        rws bundle switch /var/lib/rws/current /var/lib/rws/v1        # and back
    """
    from rws.edge.bundle.keys import trusted_keys
    from rws.edge.bundle.swap import switch_bundle

    changed = switch_bundle(current, new, other_classes, trusted_keys(key))
    where = f"{changed.path} -> {changed.path.readlink()}" if changed.path.is_symlink() else str(changed.path)
    count = len(changed.manifest.classes)
    say(f"{where} is now {changed.manifest.name}: {count} classes, {changed.signatures} signatures")


@bundle.command()
def keygen(
    name: Annotated[Path, argument(metavar="NAME", help="Writes NAME.key, which is secret, and NAME.pub.")],
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help="Encrypt the private key; asks, or reads RWS_PASSPHRASE.")
    ] = False,
) -> None:
    """Make a pair of keys: the private one signs bundles, the public one is for devices.

    Both are ed25519 keys in PEM. Keep the private one off the devices. Needs the extra `sign`.

    \b
    Examples:
        rws bundle keygen maker                       # maker.key, maker.pub
        rws bundle keygen maker --passphrase
    """
    from rws.edge.bundle.keys import make_keys

    if name.name in ("", ".."):
        raise UsageError(f"{name}: is a folder; give the name of the keys, such as maker")
    private, public = (check_target(name.with_name(f"{name.name}.{kind}")) for kind in ("key", "pub"))
    key_id = make_keys(private, public, _passphrase(confirm=True) if passphrase else None)
    say(f"{private} signs bundles: keep it secret. {public} goes to the devices. Both have the ID {key_id}.")


@bundle.command("sign")
def sign_bundle(
    path: Folder,
    key: Annotated[Path, optional(metavar="FILE", help="Private key of `rws bundle keygen`.")],
) -> None:
    """Check a bundle and sign it; needs the extra `sign`.

    The signature, the file `bundle.sig`, covers all files of the bundle. `--key` of `rws run`, `rws verify` and
    `rws bundle switch` checks it. The passphrase of an encrypted key is asked for, or read from RWS_PASSPHRASE.

    \b
    Examples:
        rws bundle sign my_bundle --key maker.key
    """
    from rws.edge.bundle import edit

    key_id = edit.sign_bundle(path, key, _passphrase)
    say(f"{path} is now signed with the key {key_id}")


def _passphrase(confirm: bool = False) -> bytes:
    given = os.environ.get("RWS_PASSPHRASE")
    if given is None and not sys.stdin.isatty():
        raise UsageError("the private key's passphrase cannot be asked for here; set RWS_PASSPHRASE")
    try:
        text = given if given is not None else typer.prompt("Passphrase", hide_input=True, confirmation_prompt=confirm)
    except typer.Abort:
        raise KeyboardInterrupt from None
    if not 0 < len(found := os.fsencode(text)) < 1024:
        raise UsageError(f"the private key's passphrase has {len(found)} bytes, expected 1 to 1023")
    return found


def _bundles(folders: Sequence[Path]) -> Iterator[Bundle]:
    """Load the bundles that ship and those that the folders are or contain; warn of each that is refused."""
    from rws.edge.bundle.bundle import Bundle
    from rws.edge.bundle.contents import IMAGENET, SHIPPED, made_here
    from rws.edge.bundle.manifest import MANIFEST

    made = filter(_is_bundle, [made_here(IMAGENET)])
    for folder in (*SHIPPED.values(), *made, *folders):
        inside = folder.iterdir() if folder.is_dir() else ()
        found = [folder] if (folder / MANIFEST).exists() else sorted(filter(_is_bundle, inside))
        if not found:
            raise BundleError(f"{folder}: no bundle here; give the folder of a bundle, or one that contains bundles")
        for path in found:
            try:
                yield Bundle.load(path)
            except RwsError as error:
                log.warning("%s", error)


def _is_bundle(folder: Path) -> bool:
    """Return whether a folder has a manifest; warn if it cannot be read."""
    from rws.edge.bundle.manifest import MANIFEST

    try:
        os.lstat(folder / MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        log.warning("%s: cannot be read (%s)", folder, error.strerror)
        return False
    return True


def _is_signed(path: Path) -> bool:
    from rws.edge.bundle.manifest import MAKER_SIGNATURE

    return (path / MAKER_SIGNATURE).exists()


def _print_change(changed: Bundle, signed: bool) -> None:
    measured = {changed.manifest.corruptions[index] for index in changed.table.signature if index >= 0}
    names = changed.signatures.names
    say(f"{changed.path} now has {len(names)} signatures: {', '.join(names)}")
    if unused := [name for name in names if name not in measured]:
        say(f"The policy does not choose {', '.join(unused)}: its gain table has not measured them.")
    say("Accuracies measured before no longer hold; measure again with `rws replay`.")
    _say_unsigned(signed)


def _say_unsigned(signed: bool) -> None:
    if signed:
        say("The maker's signature no longer holds and was removed; sign again with `rws bundle sign`.")


def _describe(bundle: Bundle) -> dict[str, Any]:
    manifest, signatures = bundle.manifest, bundle.signatures
    return {
        "path": str(bundle.path),
        "name": manifest.name,
        "signed": bundle.signed,
        "signed_by": bundle.signed_by or None,
        "classes": list(manifest.classes),
        "task": asdict(manifest.task),
        "outputs": list(manifest.outputs),
        "input": asdict(manifest.input),
        "patched_tensors": [{"name": tensor.name, "shape": list(tensor.shape)} for tensor in manifest.patched_tensors],
        "signatures": {"names": list(signatures.names), "bits": signatures.bits, "per": signatures.per},
        "oracle": {"corruptions": list(manifest.corruptions), "severity_levels": list(manifest.severity_levels)},
        "policy": {"actions": len(bundle.table.alpha), **manifest.policy},
        "filter": dict(manifest.filter),
        "bytes": {name: file.bytes for name, file in manifest.files.items()},
        "measured": dict(manifest.measured),
        "provenance": dict(manifest.provenance),
    }


def _input(description: dict[str, Any]) -> str:
    size = description["input"]
    return f"{size['height']} x {size['width']} {size['colour']}"


def _maker(description: dict[str, Any]) -> str:
    if description["signed"]:
        key_id = description["signed_by"]
        return f"signed with the key {key_id}" if key_id else "signed, not checked (--key checks it)"
    return "not signed"


def _print(description: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    signatures, oracle, provenance = (description[key] for key in ("signatures", "oracle", "provenance"))
    tensors, names = description["patched_tensors"], signatures["names"]
    levels = ", ".join(f"{level:g}" for level in oracle["severity_levels"])
    settings = {k: f"of {len(v)} states" if isinstance(v, list) else v for k, v in description["filter"].items()}
    origin = _lines(provenance) if is_verbose() else f"{', '.join(provenance)} (-v shows all)"
    task, takes = description["task"], description["input"]
    rows = {
        "folder": description["path"],
        "maker": _maker(description),
        "task": f"{' '.join(filter(None, (task['name'], task['head'])))}; reads {', '.join(description['outputs'])}",
        "input": f"{_input(description)}, {takes['dtype']} {takes['layout']} to {takes['high']}, by {takes['fit']}",
        "classes": f"{len(description['classes'])}: {', '.join(description['classes'])}",
        "signatures": f"{len(names)}, {signatures['bits']} bit per {signatures['per']}: {', '.join(names)}",
        "patched tensors": "\n".join(f"{tensor['name']} {'x'.join(map(str, tensor['shape']))}" for tensor in tensors),
        "oracle": f"{len(oracle['corruptions'])} corruptions, severity {levels}",
        "policy": ", ".join(f"{key} {value}" for key, value in description["policy"].items()),
        "filter": ", ".join(f"{key} {value}" for key, value in settings.items()) or "default",
        "files": "\n".join(f"{name} {count:,} bytes" for name, count in description["bytes"].items()),
        "measured": _lines(description["measured"]) or "nothing since the signatures changed; see `rws replay`",
        "provenance": origin if provenance else "not recorded",
    }
    table = Table(title=description["name"], show_header=False, title_justify="left")
    for label, text in rows.items():
        table.add_row(label, Text(shown_lines(text)))
    show(table)


def _lines(values: dict[str, Any]) -> str:
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
    return "\n".join(f"{key}: {text}" for key, text in texts.items())
