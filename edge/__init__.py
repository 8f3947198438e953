"""The device runtime: signatures, bundles, patchable models, the frame loop and the command line."""
