"""`python -m rws` is the `rws` command."""

from rws.cli import main

main()
