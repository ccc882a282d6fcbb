"""Collective communication for JAX."""
