"""Reporters: each prints the same ``Report``, and imports its own library only when it is used."""
