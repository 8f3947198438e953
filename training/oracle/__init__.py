"""Train, calibrate and export the corruption classifier."""
