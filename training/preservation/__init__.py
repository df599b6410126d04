"""Preservation of general knowledge: the model's predictions on general text before and after training."""
