"""A result beside its rivals: figures, pictures and a report."""
