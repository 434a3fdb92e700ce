"""Fairlead takes a change to a live service from problem to proof.

Every room is imported by its own name (`from fairlead.cache import Cache`); this package imports none of them,
so that a service pays only for what it uses.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
