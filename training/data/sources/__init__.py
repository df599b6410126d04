"""Where public data and models come from: pinned wheels, MovieLens, Amazon Beauty, simulated searches.

`assets` fetches by SHA-256; every other file makes one data set of ours.
"""
