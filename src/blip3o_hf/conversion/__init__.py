"""Published checkpoints to our layout, on disk, without a model in memory."""
