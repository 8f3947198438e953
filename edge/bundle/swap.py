"""Replacing the bundle that runs, in one step and only if all of the new one works."""

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from rws.edge.bundle.contents import BundleFiles
from rws.edge.bundle.edit import check_bundle_folder, publish
from rws.edge.bundle.examine import examine
from rws.edge.bundle.keys import TrustedKeys
from rws.edge.bundle.manifest import Manifest
from rws.edge.common.files import locked, os_errors, remove_leftovers
from rws.errors import BundleError, InputError, RwsError


@dataclass(frozen=True)
class Switched:
    """A bundle that has taken the place of another: where, what its manifest says, and its number of signatures."""

    path: Path
    manifest: Manifest
    signatures: int


def switch_bundle(
    current: str | Path, new: str | Path, other_classes: bool = False, keys: TrustedKeys | None = None
) -> Switched:
    """Examine a bundle, copy it, and replace the current one with the copy, atomically.

    This process only copies the new bundle's files; a child process without rights runs the networks, see `examine`.

    A reader of the current bundle's files finds the whole old bundle or the whole new one. After a failure everything
    is as it was. A folder is replaced. A symbolic link is pointed to a copy of the new bundle, under the new bundle's
    name, next to the folder that the link pointed to before, which is kept for a rollback; if the new bundle is in that
    place already, it is not copied. With `other_classes`, other classes or another order are accepted. With `keys`, one
    of them must have signed the new bundle.

    Raises BundleError if either bundle is not valid or holds other files, or the folder cannot be written,
    InputError if both are the same folder, the current one is inside of the new one, the classes differ, or a link's
    new place is taken; RwsError as `examine`; InUseError if another process changes the current bundle for a minute.
    """
    current, new = Path(os.path.abspath(current)), Path(os.path.realpath(new))
    place = Path(os.path.realpath(current))
    if new in (place, *place.parents):
        where = "is" if new == place else "is inside of"
        raise InputError(f"{current}: {where} {new} already; give the folder of another bundle")
    files = BundleFiles.read(new, keys)
    verdict = examine(files)  # before the lock: it may take minutes
    with os_errors(current, "written", "give a folder that can", BundleError), locked(current):
        _put(files, current, other_classes)
    return Switched(current, files.manifest, verdict.signatures)


def _put(files: BundleFiles, current: Path, other_classes: bool) -> None:
    place = Path(os.path.realpath(current))
    if not current.is_symlink():
        check_bundle_folder(place)
    if place.exists() and not other_classes:
        _check_classes(current, files)
    if current.is_symlink():
        _point(current, files)
    else:
        _copy(files, place)


def check_same_classes(old: Manifest, whose: str, new: Manifest, source: Path) -> None:
    """Raise InputError, which begins with `source`, if task or classes are not the `old` ones, in their order."""
    cure = "add --other-classes if all readers of the results know"
    if new.task.name != old.task.name:
        raise InputError(f"{source}: has the task {new.task.name}, not {old.task.name} as {whose}; {cure}")
    if new.classes == old.classes:
        return
    parts = (
        ("without", set(old.classes) - set(new.classes)),
        ("with", set(new.classes) - set(old.classes)),
    )
    changes = [f"{what} {', '.join(sorted(names))}" for what, names in parts if names]
    found = f"other classes than {whose} ({'; '.join(changes) or 'the same in another order'})"
    raise InputError(f"{source}: has {found}; {cure}")


def _check_classes(current: Path, new: BundleFiles) -> None:
    try:
        old = BundleFiles.read(current).manifest
    except RwsError as error:
        what = f"Its classes cannot be compared with those of {new.path}"
        raise BundleError(f"{error}. {what}; add --other-classes to replace it anyway") from error
    check_same_classes(old, str(current), new.manifest, new.path)


def _copy(files: BundleFiles, place: Path) -> None:
    # What was read once is what was examined, and what is written, whatever has happened to the files since.
    publish(place, files.by_name(), BundleFiles.read)


def _point(link: Path, bundle: BundleFiles) -> None:
    """Point a link to the bundle, or to a copy of it next to the folder that the link points to now."""
    place = Path(os.path.realpath(link)).with_name(bundle.path.name)
    if place != bundle.path:
        if place.exists():
            cure = f"rename {bundle.path}, or remove the other"
            raise InputError(f"{place}: is there already, and {link} would point there; {cure}")
        _copy(bundle, place)
    # A relative link stays one: it holds wherever the folder of both is mounted.
    relative = not os.path.isabs(os.readlink(link))
    target = os.path.relpath(place, os.path.realpath(link.parent)) if relative else place
    remove_leftovers(link)
    temporary = link.with_name(f".{link.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.symlink_to(target)
        os.replace(temporary, link)
    finally:
        temporary.unlink(missing_ok=True)
