"""Stages for models of the tiny world: what a published model starts from is trained from nothing here."""
