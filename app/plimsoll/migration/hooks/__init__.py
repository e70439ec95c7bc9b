"""Hooks of migrations: what is asked before, during and after a run, and may stop it."""
