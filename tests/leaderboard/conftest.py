"""Results folders to be compared."""

from tests.scored_models import family, results

__all__ = ["family", "results"]
