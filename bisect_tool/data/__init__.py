"""Data files, two side by side: tables, arrays and images, what differs in them, and how one may have come from the other."""
