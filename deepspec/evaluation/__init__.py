"""What a draft is worth: benchmarks, metrics, calibration and reports."""
