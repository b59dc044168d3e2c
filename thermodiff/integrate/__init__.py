"""Integrators for anything that offers a field: user dynamics, the reverse process, the probability flow."""
