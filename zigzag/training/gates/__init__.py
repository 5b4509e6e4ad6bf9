"""Training of gates, by which heads and layers are scored: `zigzag calibrate --method trained_gates`."""
