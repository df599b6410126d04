"""Links from items to items, learned from the training log: what was taken soon after an item, and what with it."""
