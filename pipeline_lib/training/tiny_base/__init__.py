"""How the embedded base is made: tokenizer, pretraining, card."""
