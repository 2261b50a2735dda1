"""Label fusion: one segmentation of many, with measured trust in each rater."""
