"""Formulas: read strictly, compared by value; what cannot be read is never guessed."""
