"""What numbers were made with: a snapshot of it, and what differs between two, ranked by how likely it changes numbers."""
