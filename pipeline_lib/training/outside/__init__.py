"""Trainers of other projects, on our base, problems and grader: what the method is compared with."""
