"""How good the rankings are: metrics, floors, intervals, and the evaluation that combines them."""
