"""Files that are written whole or not at all, and read with an error that says what is wrong."""
