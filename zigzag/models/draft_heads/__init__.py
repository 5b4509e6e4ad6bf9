"""Small trained parts that draft for a model: heads, layers and vectors that share its embedding and its head."""
