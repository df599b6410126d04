"""The model that is tuned: its weight matrices, its routed layers, what it knows, and the conflict of its tasks."""
