"""Works: what a run is, how it is trained, and what its losses say."""
