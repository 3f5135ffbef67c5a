"""Temperatures that make a draft's confidence mean what it says.

    tasks.calibrate ──► run ──► fit
              decodes the       Sequential Temperature Scaling,
              calibration split torch-free

One half of the split is fitted on, the other half judges the fit.
"""
