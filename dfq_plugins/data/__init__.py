"""Data sets of synthetic inputs, their files, and the calibration data that users provide."""
