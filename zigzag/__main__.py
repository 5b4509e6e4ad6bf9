"""`python -m zigzag`: the command line without an installed script."""

from zigzag.cli.app import app_entry

if __name__ == "__main__":
    app_entry()
