"""What goes around a question, and what ends an answer besides the model's own end."""
