"""Studies: several ways to train, on equal budgets and several seeds, and what their comparison decides."""
