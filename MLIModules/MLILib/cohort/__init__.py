"""Cohorts: a model on many cases, and several models beside each other on the same cases."""
