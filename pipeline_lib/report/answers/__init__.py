"""What the accuracy hides: whose answers changed, and on which kind of problem."""
