"""How good a calibration set is, judged by the trained network alone: no real data, no quantization.

`ranges` compares activations with what BatchNorm recorded, `teacher` asks what the network sees in the samples,
`verdict` turns the figures into a score and a word, `inspection` runs it all in one pass over the set.
"""
