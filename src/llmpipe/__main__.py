"""`python -m llmpipe`: the same as the command `llmpipe`."""

from llmpipe.cli import main

if __name__ == "__main__":
    main()
