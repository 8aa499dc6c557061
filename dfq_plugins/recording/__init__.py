"""Activation records: statistics that a model's owner records once from the data, so that others do not need the data.

Source: Lopes, Fenu and Starner 2017, Data-Free Knowledge Distillation for Deep Neural Networks (arXiv 1710.07535).
"""
