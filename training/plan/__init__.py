"""`gems plan`: what a training needs, before a machine is rented for it."""
