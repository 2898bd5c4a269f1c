"""Serialisable classes, flat, in the Hub's file grammar; their module paths are part of saved checkpoints."""
