# Generates install rules.
