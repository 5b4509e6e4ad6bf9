"""What is full and what streams: scores, plans of layers and of heads, the window, other formats."""
