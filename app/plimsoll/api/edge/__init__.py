"""What every request passes first and last: limits, its id, errors, one log line."""
