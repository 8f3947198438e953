"""Run long work once: the store of artefacts, shared jobs, seeds."""
