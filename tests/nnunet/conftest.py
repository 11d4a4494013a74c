"""Results folders for reading."""

from tests.scored_models import family, results

__all__ = ["family", "results"]
