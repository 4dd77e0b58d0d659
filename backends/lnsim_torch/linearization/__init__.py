"""Networks linearised at their parameters, and descent on them in closed form."""
