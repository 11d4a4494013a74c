"""Compare trained models: scores, cost, statistics, tables, and one page."""
