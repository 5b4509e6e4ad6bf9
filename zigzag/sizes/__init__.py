"""What a model needs, on paper: from its configuration and a data sheet alone."""
