"""Integrators for anything that offers a field: user dynamics, the reverse process, the probability flow."""

from thermodiff.integrate.likelihood import log_prob as log_prob
from thermodiff.integrate.passage import Passage as Passage
from thermodiff.integrate.passage import first_passage as first_passage
from thermodiff.integrate.path import Path as Path
from thermodiff.integrate.reducers import Histogram as Histogram
from thermodiff.integrate.reducers import Moments as Moments
from thermodiff.integrate.simulate import simulate as simulate
from thermodiff.integrate.solve import probability_flow as probability_flow
from thermodiff.integrate.solve import reverse as reverse
