"""The statistics that BatchNorm stored, those of a batch, and the divergence between the two."""
