"""Data sets of synthetic inputs, their files, and what users hand over as calibration data."""
