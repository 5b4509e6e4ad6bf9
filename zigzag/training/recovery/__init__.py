"""Recovery: a short training under a plan, on the model's own outputs as they were without it: `zigzag recover`."""
