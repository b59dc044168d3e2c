"""Entropy accounting: pure NumPy, the same for exact and learned scores."""

from thermodiff.accounting.comparison import Comparison as Comparison
from thermodiff.accounting.comparison import compare as compare
from thermodiff.accounting.comparison import ratio as ratio
from thermodiff.accounting.estimate import Estimate as Estimate
from thermodiff.accounting.ledger import Ledger as Ledger
from thermodiff.accounting.measure import account as account
