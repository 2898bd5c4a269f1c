"""Sampling-time noise levels and steps; the only owner of them."""
