"""Activation records: what a model's owner, who has data, writes down once so that others can do without it.

Source: Lopes, Fenu and Starner 2017, Data-Free Knowledge Distillation for Deep Neural Networks (arXiv 1710.07535).
"""
