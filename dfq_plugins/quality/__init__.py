"""Quality of a calibration set, measured with only the trained network: no real data, no quantization.

`ranges` compares activation ranges with BatchNorm's statistics, `teacher` measures what the network predicts for the
samples, `verdict` turns the figures into a score and a verdict, and `run` computes all of it in one pass over the set.
"""
