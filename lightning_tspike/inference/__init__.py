"""Running trained networks: whole, a time step at a time, and in other programs."""
