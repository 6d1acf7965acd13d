"""Verifiers that pay for wrong answers, as many as is wanted: where the worth of step scores can be seen."""
