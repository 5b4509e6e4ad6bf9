"""The command line `zigzag`: commands, and nothing else."""
