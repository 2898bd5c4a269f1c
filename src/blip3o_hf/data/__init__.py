"""Data: records and where they come from; the tiny world of coloured shapes and its verifier."""
