"""S3 and what speaks its protocol, as an ObjectStore."""

from .store import S3Objects

__all__ = ["S3Objects"]
