"""Integrators for anything that offers a field: the reverse process and the probability flow."""

from thermodiff.integrate.path import Path as Path
from thermodiff.integrate.solve import probability_flow as probability_flow
from thermodiff.integrate.solve import reverse as reverse
