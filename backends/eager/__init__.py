"""Array code that the torch and the CuPy backend share: each formula once, over whichever library an array is from."""
