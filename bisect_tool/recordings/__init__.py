"""Recordings of a run: reading them, and telling why two of them differ. No torch is needed."""
