"""`python -m eventspine` is the command `eventspine`."""

from .cli import main

main()
