"""Learning from rewards and preferences: the losses of flows, on pictures that the model drew or that people chose."""
