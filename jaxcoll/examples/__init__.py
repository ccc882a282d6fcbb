"""Runnable examples: ``python -m jaxcoll.examples.digits``."""
