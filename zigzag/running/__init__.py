"""A model under a plan: attaching, feeding it piece by piece, and the one place that attends."""
