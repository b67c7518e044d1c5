"""Parts of a grid's report."""
