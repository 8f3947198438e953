"""The `rws` script, and `python -m rws`."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C is one line and exit code 130 also while modules are imported."""
    try:
        from rws import cli

        cli.main()
    except (KeyboardInterrupt, ImportError) as error:
        # Ctrl-C while a compiled module is imported is an ImportError.
        if isinstance(error, ImportError) and not isinstance(error.__cause__, KeyboardInterrupt):
            raise
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
