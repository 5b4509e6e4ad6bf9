"""Training of draft heads over a model that stays as it is: `zigzag train-drafter`."""
