"""Results folders to be read."""

from tests.scored_models import family, results

__all__ = ["family", "results"]
