"""Routes for operators: health, readiness, metrics, the status page."""
