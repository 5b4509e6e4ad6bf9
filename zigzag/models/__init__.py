"""Getting a model: loading, checkpoints, the MTP layer, and the small GLM-4.5 that ships with zigzag."""
