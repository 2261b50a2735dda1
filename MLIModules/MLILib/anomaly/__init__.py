"""Anomaly detection: models of normal images, maps of how far an image departs from them, and what they are worth."""
