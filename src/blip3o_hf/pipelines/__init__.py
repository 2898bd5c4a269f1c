"""Inference: prompts to features to pixels."""
