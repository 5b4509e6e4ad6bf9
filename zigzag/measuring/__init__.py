"""What a head is worth and what a plan costs: prompts, scores, answers, trials, refinement, rivals."""
