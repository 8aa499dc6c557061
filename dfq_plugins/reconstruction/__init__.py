"""Reconstruction: learns roundings and scales of a calibrated network, block by block, against the float network."""
