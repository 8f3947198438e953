"""`rws job`: parts of a command's jobs, for batch systems."""

from typing import Annotated

import typer

from rws.edge.common.extras import require
from rws.errors import UsageError

job = typer.Typer(no_args_is_help=True, help="Do parts of a command's jobs.", add_completion=False)


@job.callback()
def _group() -> None:
    """Do parts of a command's jobs."""


@job.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def run(
    ctx: typer.Context,
    number: Annotated[int, typer.Argument(metavar="N", min=1, help="Which of them this one is, from 1 on.")],
    of: Annotated[str, typer.Argument(metavar="of", help="The word of.")],
    count: Annotated[int, typer.Argument(metavar="M", min=1, help="How many are started.")],
    command: Annotated[list[str], typer.Argument(metavar="COMMAND...", help="train, adopt, replay or reproduce.")],
) -> None:
    """Be one of M processes, on as many nodes, that share the jobs of a command through its --work folder.

    Each begins at another place and takes what no other has. The first one waits for all and ends the command's work.

    \b
    Examples:
        rws job run 1 of 2 replay --data imagenet-c --severity all --work /shared/replay &
        rws job run 2 of 2 replay --data imagenet-c --severity all --work /shared/replay
        rws job run $SLURM_ARRAY_TASK_ID of $SLURM_ARRAY_TASK_COUNT train /shared/data --work /shared/train
    """
    if of != "of":
        raise UsageError(f"rws job run {number} {of}: expected `N of M` and a command")
    if command[0] not in ("train", "adopt", "replay", "reproduce"):
        raise UsageError(f"{command[0]!r} has no jobs; expected train, adopt, replay or reproduce")
    if command[0] == "replay" and not any(part.split("=")[0] == "--work" for part in command):
        raise UsageError("replay: give --work FOLDER, which its processes share")
    with require("train"):
        from rws.training.jobs.driver import as_member
    root = ctx.find_root()
    name, found, arguments = root.command.resolve_command(root, command)  # type: ignore[attr-defined]  # it is a group
    with as_member(number, count), found.make_context(name, arguments, parent=root) as inner:
        found.invoke(inner)
