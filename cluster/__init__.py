"""Places: gangs of worker processes on devices. Does not know what training is."""
