"""int8 weights: rotation, rounding, calibration, and the gate that they must pass. Pure NumPy."""
