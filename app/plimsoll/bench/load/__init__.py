"""The load test's parts: `runner` runs a plan and returns a report; the rest serves it."""
