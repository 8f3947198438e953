"""Several cameras in one run, measured against a run for each."""
