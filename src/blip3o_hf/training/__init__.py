"""Training: recipes, stages (what trains, what is frozen), the Trainer and its callbacks."""
