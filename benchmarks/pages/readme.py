"""The table of README.md: what the oracle wins, and the baseline to beat, on the same frames."""

from rws.benchmarks.common.tables import columns, label
from rws.benchmarks.pages.results import find, lookup, table

ARMS = {
    "std": "no patch",
    "frame": "**trained oracle**",
    "perfect": "perfect oracle (type and severity known)",
    "augmented": "baseline: one model, trained with all corruptions",
}
TABLES = {
    "results": table(
        lambda: (find(lookup("baselines.rows"), method=method, protocol="iid", batch=1) for method in ARMS),
        label("", lambda row: ARMS[row["method"]]),
        columns({"clean accuracy": "ta", "robust accuracy": "ra"}, ".1f"),
    )
}
