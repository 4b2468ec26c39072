"""Training the arms, and what costs no training beside them."""
