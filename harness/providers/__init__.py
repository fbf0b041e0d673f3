"""Implementations that come with the harness; one engine a file, imported only when it is used."""
