"""Reference systems: whole services built on Fairlead's public imports only, found by `fairlead.systems`."""
