"""`python -m shardsieve`."""

from shardsieve.cli import main

if __name__ == "__main__":
    main()
