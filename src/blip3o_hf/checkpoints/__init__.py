"""Weights on disk: which files there are, what their headers hold, what is wrong with them; the published layout."""
