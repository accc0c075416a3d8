"""Many commands on this machine, on Ray or on SLURM: what a plan asks for, in which order, and what became of each."""
