"""The method on one page (``compress``), the search that it runs, and its result."""
