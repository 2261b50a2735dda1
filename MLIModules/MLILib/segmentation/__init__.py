"""Segmentation: inference with MONAI bundles, training, evaluation."""
