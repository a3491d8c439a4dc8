"""`python -m phenaki ...`, which is how torchrun starts the command line."""

from phenaki.cli import app

if __name__ == "__main__":
    app(prog_name="phenaki")
