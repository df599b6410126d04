"""`gems doctor`: what a machine can do, and whether it does it right."""
