"""From clean images to a bundle: corruptions, fitting, signatures, calibration, the oracle."""
