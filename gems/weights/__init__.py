"""The weights under GEMS: subspaces, their ranks, the updates in them, and the parameters outside of them."""
