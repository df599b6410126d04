"""The gradients of a step: backward passes, sums over them, and the schedule of refreshes."""
