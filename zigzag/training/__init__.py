"""Training tiny-glm: GLM-4.5's architecture at 3 to 5 million parameters, by a script, in minutes on one GPU.

`python -m zigzag.cli.train CONFIG --device cuda --out FOLDER`; docs/tiny-glm.md says what is trained, and why so.
Importing this package imports nothing else; making data needs NumPy and tokenizers, training needs torch besides.
"""
