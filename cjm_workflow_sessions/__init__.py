"""Resumable workflow sessions for FastHTML apps."""

__version__ = "0.1.0"
