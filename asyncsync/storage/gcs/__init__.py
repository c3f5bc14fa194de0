"""Google Cloud Storage: tokens and small requests by gcloud-aio, bulk traffic by ourselves."""

from .store import GcsObjects

__all__ = ["GcsObjects"]
