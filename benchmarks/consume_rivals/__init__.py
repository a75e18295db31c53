"""Consumers as the manuals of others have them, each run in a virtual environment of its own."""
