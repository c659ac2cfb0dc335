"""The version of this package, kept in the source so that it is known without an installation."""

__version__ = "0.2.0.dev0"
