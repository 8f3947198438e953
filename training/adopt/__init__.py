"""Make a deployed model patchable and train its signatures from unlabelled images."""
