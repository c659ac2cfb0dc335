"""The version of this package. It is kept here to be known without an installation."""

__version__ = "0.2.0"
